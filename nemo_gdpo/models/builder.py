"""From a model description and a mesh to megatron-core's GPTModel on this machine."""

from __future__ import annotations

from dataclasses import dataclass
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
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)

from nemo_gdpo.conversion.model_config import MegatronModelConfig, padded_vocab_size
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.attention import CoreAttention
from nemo_gdpo.models.norm import RMSNorm
from nemo_gdpo.models.rope import inverse_frequencies
from nemo_gdpo.platform import Platform


@dataclass(frozen=True)
class ParallelLayout:
    """How a model is cut: the mesh and what goes with it. Sizes in ranks."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int | None = None
    context: int = 1
    sequence_parallel: bool = False
    recompute: str | None = None
    """None, `"selective"` (core attention) or `"full"` (every layer)."""
    vocab_divisible_by: int = 128

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context


_ACTIVATIONS = {"silu": torch.nn.functional.silu}


def transformer_config(
    model: MegatronModelConfig, layout: ParallelLayout, precision: str, platform: Platform
) -> TransformerConfig:
    """The TransformerConfig of `model` on `layout`.

    Raises:
        UserError: the model needs arithmetic that is not built.
    """
    if model.activation not in _ACTIVATIONS:
        raise UserError(
            f"activation {model.activation} of the model is not built; known: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    recompute: dict[str, Any] = {}
    if layout.recompute == "full":
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    elif layout.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    low_precision = precision != "fp32"
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
        add_bias_linear=model.mlp_bias,
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
        **recompute,
        **platform.transformer_config_overrides(
            precision, interleaved=layout.virtual_pipeline is not None
        ),
    )


def _local_block(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = CoreAttention
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    # The final norm comes from the block, not from the layer spec.
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def layer_spec(
    config: TransformerConfig, platform: Platform, vp_stage: int | None
) -> ModuleSpec | TransformerBlockSubmodules:
    """Transformer Engine's fused layers where the platform has them, otherwise the local ones."""
    if platform.uses_transformer_engine_layers():
        return get_gpt_layer_with_transformer_engine_spec()
    return _local_block(config, vp_stage)


def build_gpt_chunks(
    model: MegatronModelConfig,
    config: TransformerConfig,
    layout: ParallelLayout,
    platform: Platform,
    *,
    max_sequence_length: int,
) -> list[GPTModel]:
    """This rank's model chunks: one, or one per virtual pipeline stage. Weights are not loaded."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    device = platform.device(_local_rank())
    chunks = []
    for stage in range(layout.virtual_pipeline or 1):
        vp_stage = stage if layout.virtual_pipeline else None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        gpt = GPTModel(
            config=config,
            transformer_layer_spec=layer_spec(config, platform, vp_stage),
            vocab_size=padded_vocab_size(
                model.vocab_size, layout.vocab_divisible_by, layout.tensor
            ),
            max_sequence_length=max_sequence_length,
            pre_process=first,
            post_process=last,
            parallel_output=True,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="rope",
            rotary_base=int(model.rotary_base),
            vp_stage=vp_stage,
            pg_collection=groups,
        )
        # Megatron knows one rope scaling with three of its four numbers hard-coded: the
        # frequencies are set here instead, for every scaling alike.
        gpt.rotary_pos_emb.inv_freq = inverse_frequencies(model).to(device)
        gpt.to(device)
        chunks.append(gpt)
    return chunks


def _local_rank() -> int:
    import os

    return int(os.environ.get("LOCAL_RANK", "0"))
