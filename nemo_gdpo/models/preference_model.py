"""The mechanics of preference training on megatron-core's GPT: policy, reference, objective."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed import finalize_model_grads as megatron_finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.utils import get_model_config
from torch import Tensor

from nemo_gdpo.config.checks_nf4 import KEY as NF4_KEY
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control.watch import moved_on
from nemo_gdpo.conversion.adapters import AdapterSpec
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.batch import COLUMNS, PreferenceMicroBatch, finite_or_flag, pair_logps
from nemo_gdpo.models.builder import ParallelLayout, build_gpt_chunks, transformer_config
from nemo_gdpo.models.forward import HeadOptions, forward_logprobs
from nemo_gdpo.models.lora import adapters, initialise
from nemo_gdpo.models.nf4 import quantise
from nemo_gdpo.models.swapped import SwappedWeights
from nemo_gdpo.objectives import Objective
from nemo_gdpo.platform import Platform, current_platform
from nemo_gdpo.precisions import REHEARSALS, arithmetic

NOT_FINITE = "not_finite"
LOSS = "loss"
ForwardStep = Callable[[Iterator[PreferenceMicroBatch], Any], tuple[Tensor, Callable[..., Any]]]


class PreferenceModel:
    """A policy on the mesh, its reference, and one preference objective.

    The trainer drives it through `prepare_for_training`, `prepare_for_training_step`,
    `get_loss_and_metrics` and `get_reference_logprobs`; everything runs through megatron's own
    forward-backward functions, so that TP, PP, SP, CP and DP are megatron's. NeMo's classes
    (`nemo_gdpo.nemo`) hold one of these.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        objective: Objective,
        model_config: MegatronModelConfig,
        layout: ParallelLayout,
        end_token_id: int,
    ) -> None:
        """Build the policy's chunks on this rank, with megatron's initial weights.

        Args:
            config: of the run.
            objective: what to minimise.
            model_config: the architecture.
            layout: how it is cut over ranks.
            end_token_id: the token that generation stops on; EOS of the objectives.
        """
        self.hf_assets: Path | None = None
        self.config = config
        self.objective = objective
        self.model_config = model_config
        self.layout = layout
        self.platform: Platform = current_platform()
        self.end_token_id = end_token_id
        self.megatron_config = transformer_config(
            model_config, layout, config.precision, self.platform
        )
        self.adapter = AdapterSpec.of(config.lora)
        """Adapters of the linear layers; None where every weight is trained."""
        self.gpt_chunks: list[GPTModel] = self._build_chunks()
        initialise(self.gpt_chunks, config.seed)
        self.policy_chunks: list[Any] = list(self.gpt_chunks)
        self.reference_chunks: list[Any] | None = None
        self.swapped_reference: SwappedWeights | None = None

    def _build_chunks(self) -> list[GPTModel]:
        return build_gpt_chunks(
            self.model_config,
            self.megatron_config,
            self.layout,
            self.platform,
            max_sequence_length=self.config.data.max_length,
            adapter=self.adapter,
            rehearsal=REHEARSALS.get(self.config.precision),
            four_bit=self.config.lora.base_precision == "nf4",
        )

    def quantise_base(self) -> None:
        """Bring the base into four bits, where the configuration has it so.

        Call once, after the weights are loaded and before anything is wrapped around them.

        Raises:
            UserError: this machine cannot.
        """
        if self.config.lora.base_precision != "nf4":
            return
        able = self.platform.capabilities.four_bit
        if not able.ok:
            raise UserError(f"{NF4_KEY}: nf4 {able.reason}; set it to run")
        quantise(self.gpt_chunks)

    def _in_precision(self, chunks: list[GPTModel]) -> list[Any]:
        if arithmetic(self.config.precision) == "fp32":
            return list(chunks)
        return [Float16Module(self.megatron_config, chunk) for chunk in chunks]

    def prepare_for_inference(self) -> None:
        """Ready the policy for forward passes alone. Call after the weights are loaded."""
        self.policy_chunks = self._in_precision(self.gpt_chunks)
        self._set_training(False)

    def prepare_for_training(self) -> None:
        """Wrap the policy for data parallelism. Call after the weights are loaded."""
        optim = self.config.optim
        ddp_config = DistributedDataParallelConfig(
            # A bfloat16 sum over many ranks would lose the small gradients.
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=optim.overlap_grad_reduce,
            use_distributed_optimizer=optim.use_distributed_optimizer,
        )
        self.policy_chunks = [
            DistributedDataParallel(
                config=self.megatron_config,
                ddp_config=ddp_config,
                module=chunk,
                # Buckets of later chunks would wait for gradients that come first in backward.
                disable_bucketing=index > 0,
            )
            for index, chunk in enumerate(self._in_precision(self.gpt_chunks))
        ]
        config = get_model_config(self.policy_chunks[0])
        # At the schedule's end: reduces gradients and divides by the global number of pairs.
        config.finalize_model_grads_func = megatron_finalize_model_grads
        if optim.overlap_grad_reduce:
            syncs = [chunk.no_sync for chunk in self.policy_chunks]
            config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
            if len(self.policy_chunks) > 1:
                config.grad_sync_func = [c.start_grad_sync for c in self.policy_chunks]

    def attach_resident_reference(self) -> None:
        """Keep a frozen second copy of the policy's present weights as the reference."""
        copies = self._build_chunks()
        for copy, chunk in zip(copies, self.gpt_chunks, strict=True):
            with torch.no_grad():
                for own, other in zip(copy.parameters(), chunk.parameters(), strict=True):
                    own.copy_(other)
                    own.requires_grad_(False)
        self.reference_chunks = self._in_precision(copies)
        for copy in self.reference_chunks:
            copy.eval()

    def attach_swapped_reference(self) -> None:
        """Keep the policy's present weights in host memory as the reference."""
        self.swapped_reference = SwappedWeights(self.gpt_chunks)

    def _set_training(self, training: bool) -> None:
        for chunk in self.policy_chunks:
            chunk.train(training)

    @property
    def holds_loss(self) -> bool:
        """True on the one rank of a model-parallel group whose results count."""
        return bool(
            parallel_state.is_pipeline_last_stage(ignore_virtual=True)
            and parallel_state.get_tensor_model_parallel_rank() == 0
            and parallel_state.get_context_parallel_rank() == 0
        )

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """What the objective reads of a reference, see `models.batch.COLUMNS`."""
        if not self.objective.needs_eos:
            return ("label",)
        is_tempered = self.objective.reference_eos_temperature != 1.0
        return ("label", "tempered_eos" if is_tempered else "eos")

    def _head_options(self, *, reference: bool) -> HeadOptions:
        needs_eos = self.objective.needs_eos
        temperature = self.objective.reference_eos_temperature if reference else 1.0
        return HeadOptions(
            vocab_size=self.model_config.vocab_size,
            eos_id=self.end_token_id if needs_eos else None,
            eos_temperature=temperature if needs_eos else 1.0,
            chunk_tokens=self.config.model.logprob_chunk_tokens,
            logit_softcap=self.model_config.logit_softcap,
        )

    def get_forward_output_and_loss_func(
        self, *, logprobs_only: bool, reference: bool = False, whole: bool = False
    ) -> ForwardStep:
        """The forward step that megatron's schedule calls for every micro-batch.

        Args:
            logprobs_only: return token log-probs [T, C] instead of a loss.
            reference: compute the reference's columns (tempered EOS) instead of the policy's.
            whole: return what the objective does not read of a reference as well.
        """
        kept = [COLUMNS.index(name) for name in self.reference_columns]
        options = self._head_options(reference=reference)

        def step(
            iterator: Iterator[PreferenceMicroBatch], model: Any
        ) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(iterator)
            moved_on()
            vp_stage = _vp_stage(model)
            last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
            output = forward_logprobs(model, batch, options, is_last_stage=last)

            def collect(values_TC: Tensor, non_loss_data: bool = True) -> Tensor:
                del non_loss_data  # megatron passes it with collect_non_loss_data
                is_cut = reference and not whole
                return values_TC.detach()[:, kept] if is_cut else values_TC.detach()

            def loss(values_TC: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
                return self._loss(values_TC, batch)

            return output, collect if logprobs_only else loss

        return step

    def _loss(
        self, values_TC: Tensor, batch: PreferenceMicroBatch
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(sum of losses over pairs, number of pairs, per-pair values) of one micro-batch."""
        assert batch.reference_TC is not None
        policy = pair_logps(values_TC, batch.rows)
        reference = pair_logps(batch.reference_TC, batch.rows, self.reference_columns)
        result = self.objective(policy, reference, batch.targets)
        weight_B = batch.weight_B
        # `where`, not a product: a sentinel repeats a real pair, but must not spread a NaN.
        total = torch.where(weight_B > 0, result.loss_N, result.loss_N.new_zeros(())).sum()
        count = weight_B.sum().to(torch.int)
        if parallel_state.get_context_parallel_rank() != 0:
            # Megatron sums the number over data- and context-parallel ranks, and every
            # context-parallel rank has the same pairs.
            count = torch.zeros_like(count)
        flag = finite_or_flag(result.loss_N.detach())
        for half in (policy.chosen, policy.rejected, reference.chosen, reference.rejected):
            # Padding is not looked at: only what the objective reads has to be finite.
            flag = flag.maximum(finite_or_flag(half.label_NT.detach().where(half.mask_NT, 0.0)))
        # Cloned: the schedule divides the loss in place.
        per_pair = {LOSS: result.loss_N.detach().clone(), **result.metrics, NOT_FINITE: flag}
        return total, count, {"batch_index_B": batch.batch_index_B, "per_pair": per_pair}

    def _run_schedule(
        self,
        step: ForwardStep,
        chunks: list[Any],
        micro_batches: list[PreferenceMicroBatch],
        *,
        forward_only: bool,
        collect: bool,
    ) -> list[Any]:
        # The shape of the pipeline's buffers: rows, of which a pair has two, not pairs.
        rows, length = micro_batches[0].inputs[0].shape
        iterators = [iter(micro_batches) for _ in chunks]
        results: list[Any] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
            collect_non_loss_data=collect,
        )
        return results

    def prepare_for_training_step(self) -> None:
        """Zero the gradient buffers."""
        for chunk in self.policy_chunks:
            chunk.zero_grad_buffer()

    def get_loss_and_metrics(
        self, micro_batches: list[PreferenceMicroBatch], *, forward_only: bool
    ) -> list[dict[str, Any]]:
        """Forward, and backward unless `forward_only`, over one global batch's share of this rank.

        Args:
            micro_batches: equal in rows and length.
            forward_only: validation.

        Returns:
            On the last stage one dict a micro-batch: `batch_index_B`, and `per_pair` values [B] by
            name. Elsewhere an empty list.
        """
        self._set_training(not forward_only)
        with torch.set_grad_enabled(not forward_only):
            return self._run_schedule(
                self.get_forward_output_and_loss_func(logprobs_only=False),
                self.policy_chunks,
                micro_batches,
                forward_only=forward_only,
                collect=False,
            )

    @torch.no_grad()
    def get_reference_logprobs(self, micro_batches: list[PreferenceMicroBatch]) -> list[Tensor]:
        """`reference_columns` [T, C] of the reference for each micro-batch, on the last stage.

        The reference is the copy of the weights if one is attached, with `reference=adapter_off`
        the policy without its adapters, otherwise the policy itself, which is right before the
        first step only: that is how the cache is made.
        """
        chunks = self.reference_chunks
        if chunks is None:
            chunks = self.policy_chunks
            self._set_training(False)
        with self._as_reference():
            return self._run_schedule(
                self.get_forward_output_and_loss_func(logprobs_only=True, reference=True),
                chunks,
                micro_batches,
                forward_only=True,
                collect=True,
            )

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        """In the block the policy's chunks are the reference, where they are to serve as one."""
        if self.swapped_reference is not None:
            with self.swapped_reference.in_place():
                yield
        elif self.config.reference == "adapter_off":
            with self.adapters_off():
                yield
        else:
            yield

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """In the block the policy is its base."""
        found = list(adapters(self.gpt_chunks))
        for adapter in found:
            adapter.is_on = False
        try:
            yield
        finally:
            for adapter in found:
                adapter.is_on = True

    @torch.no_grad()
    def get_token_logprobs(self, micro_batches: list[PreferenceMicroBatch]) -> list[Tensor]:
        """All of `models.batch.COLUMNS` [T, C] of the policy, on the last stage."""
        self._set_training(False)
        return self._run_schedule(
            self.get_forward_output_and_loss_func(logprobs_only=True, reference=True, whole=True),
            self.policy_chunks,
            micro_batches,
            forward_only=True,
            collect=True,
        )

    @contextlib.contextmanager
    def moved_embeddings(self, relative: float, seed: int) -> Iterator[None]:
        """In the block every number that enters the policy's first layer is moved, up or down.

        The same way on all tensor-parallel ranks, which hold the same numbers.

        Args:
            relative: how far, as a share of the number.
            seed: of the directions.
        """

        def move(module: Any, arguments: Any, output_SBH: Tensor) -> Tensor:
            del module, arguments
            draw = torch.Generator().manual_seed(seed)
            up = torch.rand(output_SBH.shape, generator=draw, device="cpu") < 0.5
            factor = torch.where(up, 1.0 + relative, 1.0 - relative)
            return output_SBH * factor.to(output_SBH)

        hooks = [
            chunk.embedding.register_forward_hook(move)
            for chunk in self.gpt_chunks
            if chunk.pre_process
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def named_policy_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """Local parameters of all chunks of this rank."""
        for index, chunk in enumerate(self.gpt_chunks):
            for name, parameter in chunk.named_parameters():
                yield f"chunk{index}.{name}", parameter


def _vp_stage(model: Any) -> int | None:
    """The virtual stage of a chunk under megatron's wrappers (each has the inner as `.module`)."""
    while not isinstance(model, GPTModel):
        model = model.module
    stage: int | None = model.vp_stage
    return stage
