"""`model_config.yaml` of a NeMo 1 GPT as the config.json of the Llama or Gemma that it is.

Where the meaning of a field comes from (NeMo, the last tree that had NeMo 1's language models):
`nemo/collections/nlp/models/language_modeling/megatron_base_model.py` and `megatron_gpt_model.py`
(`build_transformer_config`, `model_provider_func`, `mcore_model_customize`),
`nemo/collections/nlp/parts/utils_funcs.py` (`activation_to_func`), and the converters
`scripts/checkpoint_converters/convert_llama_hf_to_nemo.py` and `convert_gemma_hf_to_nemo.py`.
NeMo-Aligner adds fields for its own training (`examples/nlp/gpt/conf/`) and changes no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_gdpo.errors import UserError

MAX_BYTES = 1 << 20
LLAMA, GEMMA = "llama", "gemma"
_ACTIVATIONS = {("swiglu", False): LLAMA, ("geglu", True): GEMMA}
"""(activation without `fast-`, openai_gelu) -> family. OpenAI's GELU is the tanh formula, and NeMo
lets it take precedence over the name."""

ONLY: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": (False, None),
    "attention_type": ("multihead",),
    "bias": (False,),
    "drop_layers": (None, []),
    "expert_model_parallel_size": (1, None),
    "fp32_residual_connection": (False, None),
    "headscale": (False,),
    "hyena": (None,),
    "mcore_customization_config": (None, {}),
    "mcore_gpt": (True,),
    "megatron_legacy": (False,),
    "moe_grouped_gemm": (False, None),
    "multi_latent_attention": (False, None),
    "name": (None, "", "te_gpt", "megatron_gpt_full_te_layer_autocast"),
    "normalize_attention_scores": (True,),
    "num_moe_experts": (None,),
    "position_embedding_type": ("rope",),
    "qk_layernorm": (False, None),
    "qkv_bias": (False, None),
    "rotary_interleaved": (False, None),
    "rotary_percentage": (1, None),
    "softmax_scale": (None,),
    "transformer_block_type": ("pre_ln",),
    "window_attn_skip_freq": (None,),
    "window_size": (None,),
}
"""Fields -> the values whose arithmetic is built; any other value is refused."""
REQUIRED = ("bias", "mcore_gpt", "position_embedding_type")
"""Fields whose absence means another value than the one that is built."""

NEUTRAL = frozenset(
    {
        # how it was trained: batches, schedule, precision, layout, kernels, logging
        "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split",
        "activations_checkpoint_granularity", "activations_checkpoint_layers_per_pipeline",
        "activations_checkpoint_method", "activations_checkpoint_num_layers",
        "answer_only_loss", "apex_transformer_log_level", "apply_query_key_layer_scaling",
        "apply_rope_fusion", "async_grad_allreduce", "attention_backend", "attention_dropout",
        "attention_softmax_in_fp32", "barrier_with_L1_time", "batch_p2p_comm",
        "bias_activation_fusion", "bias_dropout_add_fusion", "bias_dropout_fusion",
        "context_parallel_size", "cpu_offloading", "cross_entropy_loss_fusion", "data",
        "defer_embedding_wgrad_compute", "deterministic_mode", "dist_ckpt_format",
        "dist_ckpt_load_on_device", "dist_ckpt_load_strictness", "dist_ckpt_parallel_dist_opt",
        "dist_ckpt_parallel_load", "dist_ckpt_parallel_save",
        "dist_ckpt_parallel_save_within_dp", "dist_ckpt_torch_dist_multiproc",
        "do_layer_norm_weight_decay", "enable_cuda_graph", "encoder_seq_length",
        "ffn_dropout", "fp16_lm_cross_entropy", "fp8", "fp8_amax_compute_algo",
        "fp8_amax_history_len", "fp8_e4m3", "fp8_hybrid", "fp8_interval", "fp8_margin",
        "fp8_params", "fp8_wgrad", "fsdp", "gc_interval", "get_attention_mask_from_fusion",
        "global_batch_size", "grad_allreduce_chunk_size_mb", "grad_div_ar_fusion",
        "gradient_accumulation_fusion", "gradient_as_bucket_view", "hidden_dropout",
        "hysteresis", "inference", "init_method_std", "masked_softmax_fusion",
        "megatron_amp_O2", "micro_batch_size", "mcore_logger_level",
        "native_amp_growth_interval", "native_amp_init_scale", "nsys_profile",
        "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage",
        "num_micro_batches_with_partial_activation_checkpoints", "onnx_safe", "optim",
        "overlap_p2p_comm", "overlap_params_allgather", "peft", "persist_layer_norm",
        "pipeline_model_parallel_size", "pipeline_model_parallel_split_rank", "post_process",
        "pre_process", "precision", "pretrained_checkpoint", "rampup_batch_size",
        "reduce_amax", "resume_from_checkpoint", "restore_from_ckpt", "restore_from_path", "seed",
        "sequence_parallel", "sync_batch_comm", "tensor_model_parallel_size",
        "tp_comm_atomic_ag", "tp_comm_atomic_rs", "tp_comm_bulk_dgrad", "tp_comm_bulk_wgrad",
        "tp_comm_overlap_ag", "tp_comm_overlap_rs", "tp_comm_split_ag", "tp_comm_split_rs",
        "tp_only_amax_red", "transformer_engine", "ub_tp_comm_bootstrap_backend",
        "ub_tp_comm_overlap", "ub_tp_comm_overlap_cfg", "use_cpu_initialization", "use_emha",
        "use_flash_attention", "use_loss_mask", "use_scaled_init_method", "use_te_rng_tracker",
        "virtual_pipeline_model_parallel_size",
        # NeMo-Aligner's sections, one for each algorithm
        "dpo", "ipo", "kto", "knowledge_distillation", "ppo", "reinforce", "rs", "spin", "steerlm2",
        "log_prob_forward_micro_batch_size", "overwrite_base_config", "offload_adam_states",
        "reward_model_type",
        # provenance
        "nemo_version", "target",
    }
)  # fmt: skip
"""Fields that change no logit. `target` names a class, which is never looked up."""


@dataclass(frozen=True)
class NemoModel:
    """Description of a NeMo GPT, apart from its vocabulary."""

    family: str
    hf_config: dict[str, Any]
    """config.json without `vocab_size` and type."""
    norm_offset: float
    """Number to add to norm weights: NeMo stores Gemma's with 1 added, Hugging Face without."""
    override_vocab_size: int | None
    tokenizer: dict[str, Any]
    """`library`, `type`, `model`: where the tokenizer came from."""


class _Fields:
    """model_config.yaml, with a record of what was asked for."""

    def __init__(self, values: DictConfig, where: Path) -> None:
        self._values = values
        self.where = where
        self._seen: set[str] = set()

    def error(self, reason: str) -> UserError:
        return UserError(f"{self.where}: {reason}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value, interpolations resolved; `default` where it is absent."""
        self._seen.add(name)
        try:
            value = self._values.get(name)
        except OmegaConfBaseException as error:
            raise self.error(f"{name} cannot be resolved ({str(error).splitlines()[0]})") from None
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=False)
        return default if value is None else value

    def integer(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(f"{name} is {value!r} instead of a positive integer")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(f"{name} is {value!r} instead of a positive number")
        return float(value)

    def refuse_what_is_not_built(self) -> None:
        for name, allowed in ONLY.items():
            value = self.get(name)
            if name not in self._values and name in REQUIRED:
                raise self.error(
                    f"{name} is missing, which stands for a value that is not supported"
                )
            if name in self._values and value not in allowed:
                raise self.error(
                    f"{name} is {value!r}, which is not supported (supported: "
                    f"{' or '.join(repr(a) for a in allowed)}); use another model"
                )

    def refuse_unknown(self, ignored: frozenset[str]) -> None:
        unknown = sorted(
            str(name)
            for name in self._values
            if name not in self._seen and name not in NEUTRAL and name not in ignored
        )
        if unknown:
            raise self.error(
                f"unknown fields {', '.join(unknown)}; they may change the arithmetic: if they do "
                f"not, say so with --ignore-field {unknown[0]}"
            )


def _load(path: Path) -> DictConfig:
    """The file as plain data: no tags, no aliases, no classes."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: has more than {MAX_BYTES} bytes; it is not a configuration")
        text = path.read_text(encoding="utf-8")
        # Aliases of aliases grow without limit when they are written out.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError(f"{path}: has aliases, which no program writes there; refused")
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it is not an archive of a NeMo model") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no fields; it is not an archive of a NeMo model")
    created = OmegaConf.create(values)
    assert isinstance(created, DictConfig)
    return created


def _family(fields: _Fields) -> str:
    activation = str(fields.get("activation", "gelu"))
    openai = bool(fields.get("openai_gelu", False))
    family = _ACTIVATIONS.get((activation.removeprefix("fast-"), openai))
    scaled = bool(fields.get("apply_embedding_scaling", False))
    if family is None or scaled != (family == GEMMA):
        raise fields.error(
            f"activation {activation}, openai_gelu {openai}, apply_embedding_scaling {scaled}: is "
            "neither a Llama (swiglu, without both) nor a Gemma (geglu, with both)"
        )
    return family


def _rope(fields: _Fields) -> dict[str, Any]:
    linear = fields.get("seq_len_interpolation_factor")
    llama3 = {
        "rope_type": "llama3",
        "factor": fields.number("scale_factor", 8),
        "low_freq_factor": fields.number("low_freq_factor", 1),
        "high_freq_factor": fields.number("high_freq_factor", 4),
        "original_max_position_embeddings": int(fields.number("old_context_len", 8192)),
    }
    scaled = bool(fields.get("scale_positional_embedding", False))
    if scaled and linear is not None:
        raise fields.error(
            "seq_len_interpolation_factor and scale_positional_embedding together are not supported"
        )
    found: dict[str, Any] = {"rope_theta": fields.number("rotary_base", 10000)}
    if scaled:
        found["rope_scaling"] = llama3
    elif linear is not None:
        factor = fields.number("seq_len_interpolation_factor", 1)
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return found


def _norm_offset(fields: _Fields, family: str) -> float:
    normalization = str(fields.get("normalization", "layernorm")).lower()
    if normalization != "rmsnorm":
        raise fields.error(f"normalization {normalization} is not supported (supported: rmsnorm)")
    zero_centered = bool(fields.get("layernorm_zero_centered_gamma", False))
    if family == LLAMA and zero_centered:
        raise fields.error("layernorm_zero_centered_gamma is set, which no Llama has")
    return 0.0 if family == LLAMA or zero_centered else -1.0


def read_nemo_config(path: Path, ignored: frozenset[str] = frozenset()) -> NemoModel:
    """Read the model that a `model_config.yaml` describes.

    Args:
        path: of the file.
        ignored: unknown fields that the user says change nothing.

    Raises:
        UserError: no readable file, neither a Llama nor a Gemma, or a field that is unknown or asks
            for arithmetic that is not built.
    """
    fields = _Fields(_load(path), path)
    family = _family(fields)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    groups, channels = fields.get("num_query_groups"), fields.get("kv_channels")
    activation = (
        {"hidden_act": "silu"}
        if family == LLAMA
        else {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    )
    config = {
        "architectures": ["LlamaForCausalLM" if family == LLAMA else "GemmaForCausalLM"],
        "model_type": family,
        "num_hidden_layers": fields.integer("num_layers"),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("ffn_hidden_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if groups is None else fields.integer("num_query_groups"),
        "head_dim": hidden // heads if channels is None else fields.integer("kv_channels"),
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "rms_norm_eps": fields.number("layernorm_epsilon", 1e-5),
        "tie_word_embeddings": bool(fields.get("share_embeddings_and_output_weights", True)),
        **activation,
        **_rope(fields),
    }
    override = fields.get("override_vocab_size")
    tokenizer = fields.get("tokenizer", {})
    if not isinstance(tokenizer, Mapping):
        raise fields.error("tokenizer is not a group of fields")
    found = NemoModel(
        family=family,
        hf_config=config,
        norm_offset=_norm_offset(fields, family),
        override_vocab_size=None if override is None else fields.integer("override_vocab_size"),
        tokenizer=dict(tokenizer),
    )
    fields.get("make_vocab_size_divisible_by")  # how far it is padded; its rows say so too
    fields.refuse_what_is_not_built()
    fields.refuse_unknown(ignored)
    return found
