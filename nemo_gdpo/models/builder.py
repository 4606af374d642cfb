"""Builds megatron-core's GPTModel on this machine from a model description and a mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from torch import Tensor

from nemo_gdpo.conversion.adapters import AdapterSpec
from nemo_gdpo.conversion.model_config import MegatronModelConfig, padded_vocab_size
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.attention import CoreAttention
from nemo_gdpo.models.layers import (
    LayerwiseRotaryAttention,
    ScaleEmbedding,
    with_gradient,
    with_post_norm,
)
from nemo_gdpo.models.lora import adapted, freeze_base, has_adapter
from nemo_gdpo.models.nf4 import quantisable
from nemo_gdpo.models.norm import RMSNorm
from nemo_gdpo.models.rehearsal import rehearse_fp8
from nemo_gdpo.models.rope import FamilyRotaryEmbedding, attention_factor
from nemo_gdpo.models.shared import take_angles, with_shared_keys
from nemo_gdpo.platform import Platform
from nemo_gdpo.platform.base import TRANSFORMER_ENGINE
from nemo_gdpo.platform.layers import layers_for, recompute_modules
from nemo_gdpo.precisions import arithmetic


@dataclass(frozen=True)
class ParallelLayout:
    """The cut of a model: the mesh and what goes with it. Sizes in ranks."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int | None = None
    context: int = 1
    sequence_parallel: bool = False
    recompute: str | None = None
    """None, `"selective"` (see `nemo_gdpo.platform.layers`) or `"full"` (every layer)."""
    layers: str = "auto"
    """`"auto"`, `"transformer_engine"` or `"local"`, as `model.layers`."""
    attention_backend: str = "auto"
    """Kernels of Transformer Engine's attention, as `model.attention_backend`."""
    vocab_divisible_by: int = 128

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula, as Gemma has it."""
    return torch.nn.functional.gelu(x, approximate="tanh")


_ACTIVATIONS = {"silu": torch.nn.functional.silu, "gelu_tanh": gelu_tanh}


def transformer_config(
    model: MegatronModelConfig, layout: ParallelLayout, precision: str, platform: Platform
) -> TransformerConfig:
    """The TransformerConfig of `model` on `layout`.

    Raises:
        UserError: the model needs arithmetic that is not built, or layers that cannot be had here.
    """
    if model.activation not in _ACTIVATIONS:
        raise UserError(
            f"activation {model.activation} of the model is not built; known: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    layers = layers_for(layout.layers, precision, platform.capabilities)
    low_precision = arithmetic(precision) != "fp32"
    overrides = platform.transformer_config_overrides(
        arithmetic(precision), interleaved=layout.virtual_pipeline is not None, layers=layers
    )
    if model.activation != "silu":
        # Megatron's fused gated GELU is another formula.
        overrides["bias_activation_fusion"] = False
    scale = model.softmax_scale or 1.0 / math.sqrt(model.kv_channels)
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        layernorm_epsilon=model.layernorm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=_ACTIVATIONS[model.activation],
        layernorm_zero_centered_gamma=model.zero_centered_norms,
        qk_layernorm=model.qk_norms,
        # YaRN scales rotated queries and keys alike; fused kernels of rope do not have that factor.
        softmax_scale=scale * attention_factor(model) ** 2,
        **_windows(model),
        add_bias_linear=False,
        add_qkv_bias=model.attention_bias,
        # Dropout would make policy and reference two different models.
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence_parallel,
        params_dtype=torch.bfloat16 if low_precision else torch.float32,
        pipeline_dtype=torch.bfloat16 if low_precision else torch.float32,
        # The micro-batch reports (sum over pairs, number of pairs); megatron divides by the global
        # number, so that any micro-batch size, accumulation or DP size gives the same gradient.
        calculate_per_token_loss=True,
        transformer_impl=layers,
        attention_backend=AttnBackend[layout.attention_backend],
        **_recompute(model, layout, layers),
        **overrides,
    )


def _recompute(model: MegatronModelConfig, layout: ParallelLayout, layers: str) -> dict[str, Any]:
    if layout.recompute is None:
        return {}
    if layout.recompute == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    modules = recompute_modules(
        layers, layout.attention_backend, softcap=model.attention_softcap is not None
    )
    return {"recompute_granularity": "selective", "recompute_modules": modules}


def _windows(model: MegatronModelConfig) -> dict[str, Any]:
    """Megatron's two fields for windows: one size, and the layers that have it.

    Raises:
        UserError: the layers have windows of different sizes.
    """
    if model.layer_windows is None:
        return {}
    sizes = {window for window in model.layer_windows if window is not None}
    if len(sizes) != 1:
        raise UserError(f"the model's layers have windows of {len(sizes)} sizes; one is supported")
    # Hugging Face counts the query's own position, megatron does not.
    return {
        "window_size": (sizes.pop() - 1, 0),
        "window_attn_skip_freq": [int(window is not None) for window in model.layer_windows],
    }


def _block(
    model: MegatronModelConfig,
    config: TransformerConfig,
    layer: ModuleSpec,
    vp_stage: int | None,
    norm: Any,
    adapter: AdapterSpec | None,
    four_bit: bool,
) -> TransformerBlockSubmodules:
    """Put what the family needs into a layer's spec, and as many of it as this rank builds."""
    parts = layer.submodules
    attention = parts.self_attention
    if adapter is not None:
        _adapt(parts, adapter, four_bit)
    if model.attention_softcap is not None:
        attention.submodules.core_attention = partial(
            CoreAttention, softcap=model.attention_softcap
        )
    if model.local_rotary_base is not None:
        attention.module = LayerwiseRotaryAttention
    if model.post_norms:
        submodules = attention.submodules
        submodules.linear_proj = with_post_norm(submodules.linear_proj, norm)
        mlp = parts.mlp.keywords["submodules"]
        mlp.linear_fc2 = with_post_norm(mlp.linear_fc2, norm)
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    # The final norm comes from the block, not from the layer spec.
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=norm)


def _adapt(parts: Any, adapter: AdapterSpec, four_bit: bool) -> None:
    """Put adapters into a layer's linear layers; before a norm of their outputs is put around.

    And what a weight in four bits needs, into all of them.
    """
    for submodules, names in (
        (parts.self_attention.submodules, ("linear_qkv", "linear_proj")),
        (parts.mlp.keywords["submodules"], ("linear_fc1", "linear_fc2")),
    ):
        for name in names:
            linear = vars(submodules)[name]
            if four_bit:
                linear = quantisable(linear, name)
            if has_adapter(name, adapter):
                linear = adapted(linear, name, adapter)
            setattr(submodules, name, linear)


def _norms_apart(parts: Any, adapter: AdapterSpec, four_bit: bool) -> None:
    """Take the norms out of Transformer Engine's fused layers where adapters read what they give.

    Or where the product is no longer Transformer Engine's.

    The names in checkpoints stay, as for the local layers.
    """
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm

    names = dict(parts.sharded_state_dict_keys_map)
    if four_bit or has_adapter("linear_qkv", adapter):
        parts.input_layernorm = TENorm
        parts.self_attention.submodules.linear_qkv = TEColumnParallelLinear
        names["input_layernorm."] = "self_attention.linear_qkv.layer_norm_"
    if four_bit or has_adapter("linear_fc1", adapter):
        parts.pre_mlp_layernorm = TENorm
        parts.mlp.keywords["submodules"].linear_fc1 = TEColumnParallelLinear
        names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    parts.sharded_state_dict_keys_map = names


def _transformer_engine_spec(
    model: MegatronModelConfig,
    config: TransformerConfig,
    vp_stage: int | None,
    adapter: AdapterSpec | None,
    four_bit: bool,
) -> TransformerBlockSubmodules:
    # Not importable without Transformer Engine.
    from megatron.core.extensions.transformer_engine import TENorm

    backend = config.attention_backend
    capped = model.attention_softcap is not None
    if capped and backend not in {AttnBackend.auto, AttnBackend.local}:
        raise UserError(
            f"model.attention_backend={backend.name}: the model caps its attention scores, which "
            "Transformer Engine's kernels cannot; set it to auto"
        )
    own_attention = capped or backend is AttnBackend.local
    if config.context_parallel_size > 1 and model.layer_windows is not None and not own_attention:
        raise UserError(
            "model.context_parallel_size: Transformer Engine's attention has no windows under "
            "context parallelism in the form used here; set it to 1, or "
            "model.attention_backend=local"
        )
    layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norms)
    attention = layer.submodules.self_attention.submodules
    if backend is AttnBackend.local:
        attention.core_attention = CoreAttention
    else:
        attention.core_attention = with_shared_keys(attention.core_attention)
    if adapter is not None:
        _norms_apart(layer.submodules, adapter, four_bit)
    return _block(model, config, layer, vp_stage, TENorm, adapter, four_bit)


def layer_spec(
    model: MegatronModelConfig,
    config: TransformerConfig,
    vp_stage: int | None,
    adapter: AdapterSpec | None = None,
    four_bit: bool = False,
) -> TransformerBlockSubmodules:
    """Transformer Engine's fused layers or the local ones, as `config` was made for.

    Args:
        model: the architecture.
        config: made for it.
        vp_stage: of the virtual pipeline.
        adapter: adapters of the linear layers; None for none.
        four_bit: with them, layers whose weights can be quantised (`nemo_gdpo.models.nf4`).

    Raises:
        UserError: Transformer Engine's attention cannot do what the model and the mesh need.
    """
    if config.transformer_impl == TRANSFORMER_ENGINE:
        return _transformer_engine_spec(model, config, vp_stage, adapter, four_bit)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=model.qk_norms)
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = CoreAttention
    if model.qk_norms:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return _block(model, config, layer, vp_stage, RMSNorm, adapter, four_bit)


def build_gpt_chunks(
    model: MegatronModelConfig,
    config: TransformerConfig,
    layout: ParallelLayout,
    platform: Platform,
    *,
    max_sequence_length: int,
    adapter: AdapterSpec | None = None,
    rehearsal: str | None = None,
    four_bit: bool = False,
) -> list[GPTModel]:
    """This rank's model chunks: one, or one per virtual pipeline stage. Weights are not loaded.

    Args:
        model: the architecture.
        config: made for it.
        layout: how it is cut over ranks.
        platform: of this process.
        max_sequence_length: of the rows.
        adapter: adapters of the linear layers, without values; all else is frozen then.
        rehearsal: FP8 recipe whose rounding the linear layers have; None for none.
        four_bit: with them, layers whose weights can be quantised (`nemo_gdpo.models.nf4`).

    Raises:
        UserError: the model needs arithmetic that is not built, here or on this mesh.
    """
    scaling = model.rotary_scaling or {}
    if (
        scaling.get("rope_type") == "dynamic"
        and max_sequence_length > model.max_position_embeddings
    ):
        # Beyond it, the frequencies of a sequence depend on the longest one beside it.
        raise UserError(
            f"data.max_length: {max_sequence_length} is beyond the model's "
            f"{model.max_position_embeddings} positions, where its dynamic rope scaling gives "
            "log-probabilities that depend on the batch; lower it"
        )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    device = platform.device(_local_rank())
    chunks = []
    for stage in range(layout.virtual_pipeline or 1):
        vp_stage = stage if layout.virtual_pipeline else None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        gpt = GPTModel(
            config=config,
            transformer_layer_spec=layer_spec(model, config, vp_stage, adapter, four_bit),
            vocab_size=padded_vocab_size(
                model.vocab_size, layout.vocab_divisible_by, layout.tensor
            ),
            max_sequence_length=max_sequence_length,
            pre_process=first,
            post_process=last,
            parallel_output=True,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="rope",
            rotary_base=int(model.rotary_base),  # not used: replaced below
            vp_stage=vp_stage,
            pg_collection=groups,
        )
        gpt.rotary_pos_emb = FamilyRotaryEmbedding(model, groups.cp)
        gpt.decoder.register_forward_pre_hook(take_angles, with_kwargs=True)
        if first and model.embedding_scale is not None:
            gpt.embedding.register_forward_hook(ScaleEmbedding(model.embedding_scale))
        if adapter is not None:
            freeze_base(gpt)
            if first and layout.recompute is not None:
                gpt.embedding.register_forward_hook(with_gradient)
        gpt.to(device)
        if rehearsal is not None:
            rehearse_fp8(gpt, rehearsal, model.num_layers)
        chunks.append(gpt)
    return chunks


def _local_rank() -> int:
    import os

    return int(os.environ.get("LOCAL_RANK", "0"))
