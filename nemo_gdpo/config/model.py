"""The `model` section: weights, mesh, batch sizes, memory."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nemo_gdpo.config.base import (
    CONTENT,
    FIXED,
    FREE,
    OnResume,
    Section,
    from_environment,
)
from nemo_gdpo.config.places import StartPath

Size = Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    """Names follow NeMo's. Sizes of the mesh count ranks; batch sizes count pairs."""

    on_resume: ClassVar[OnResume | None] = FREE
    restore_from_path: Annotated[StartPath | None, CONTENT] = from_environment("NEMO_GDPO_MODEL")
    """A Hugging Face directory with safetensors, a Megatron checkpoint, or a `.nemo`; also a run's
    directory or its `checkpoints`, or a hub's name whose files lie in the local cache."""
    architecture: Literal["llama3_8b", "llama3_70b", "gemma2_9b", "smollm2_135m"] | None = None
    """A published model whose sizes `plan` and `validate --elsewhere` take where the model's own
    config.json cannot be read here; training reads that alone."""
    cache_converted: bool = False
    """Convert a Hugging Face directory to a Megatron checkpoint on disk first and load that; false
    reads each rank's slices straight from the directory."""
    tensor_model_parallel_size: Size = 1
    """Ranks that share each layer; must divide the attention heads and the KV groups."""
    pipeline_model_parallel_size: Size = 1
    """Ranks that share the layers in order; must divide their number."""
    virtual_pipeline_model_parallel_size: Annotated[int, Field(ge=2)] | None = None
    """Model chunks on each pipeline rank; null is one."""
    context_parallel_size: Size = 1
    """Ranks that share each sequence."""
    sequence_parallel: bool = False
    """Split norms and dropout along the sequence over the tensor-parallel ranks."""
    micro_batch_size: Size = 1
    """Pairs in one forward pass of one data-parallel rank; with data.packing, for how many of
    data.max_length a row has room, unless data.pack_tokens says it."""
    global_batch_size: Annotated[Size, FIXED] = 8
    """Pairs in one update, over all ranks and accumulation."""
    activations_checkpoint_granularity: Literal["selective", "full"] | None = None
    """Recompute parts of each layer (selective) or whole layers (full) in backward to save memory.
    Selective is core attention where that keeps its scores (local layers, the unfused back end, a
    soft-cap of scores), and the MLP where it keeps none (the kernels of Transformer Engine)."""
    layers: Literal["auto", "transformer_engine", "local"] = "auto"
    """Where the layers come from. auto takes Transformer Engine on a GPU, which is an error where
    it is missing or broken, and megatron-core's local layers on a CPU and for fp32, which
    Transformer Engine multiplies in TF32."""
    attention_backend: Literal["auto", "flash", "fused", "unfused", "local"] = "auto"
    """Kernels of core attention in the layers of Transformer Engine; auto leaves the choice to it,
    local takes torch's attention. With local layers only auto."""
    make_vocab_size_divisible_by: Size = 128
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""
    logprob_chunk_tokens: Size = 1024
    """At most the logits of this many tokens are held at once when log-probabilities are computed;
    in bfloat16 on a GPU also at most 2^25 logits, 128 MiB."""
