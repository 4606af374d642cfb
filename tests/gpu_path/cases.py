"""What the rehearsal trains: tiny models of every family, settings of the mesh, precisions.

Importable without pytest: ranks and tests both read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support import models
from tests.support.data import pairs, write_jsonl
from tests.support.tiers import usual

RANKS, STEPS, PAIRS, BATCH, LAYERS = 2, 2, 8, 4, 4
LEARNING_RATE = 1e-4
FAMILIES = {"llama": "llama_untied", "gemma2": "gemma2", "gemma3": "gemma3", "qwen3": "qwen3"}
"""Name here -> kind in `tests.support.models`."""
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
"""Small, and still multiples of what every FP8 recipe asks for when it is cut in two."""

TP2 = ("model.tensor_model_parallel_size=2",)
PP2 = ("model.pipeline_model_parallel_size=2",)
ZERO = ("optim.use_distributed_optimizer=true",)
SPLIT = (*TP2, "model.sequence_parallel=true", *ZERO)
PACKED = ("data.packing=true", "data.pack_tokens=4096")
"""All pairs of a global batch that a rank has, in one row; on two pipeline stages, in two."""
SHARED = (*PACKED, "data.prefix_sharing=true")
RESIDENT = ("reference=resident",)
FULL = ("model.activations_checkpoint_granularity=full",)
SELECTIVE = ("model.activations_checkpoint_granularity=selective",)
SAVES = ("trainer.save_interval=1",)
EXPORTS = (*SAVES, "export_hf=true", "export_nemo=true")
AUTO = ("model.attention_backend=auto",)
ADAPTERS = ("lora.rank=4", "lora.alpha=8", "reference=adapter_off")
NF4 = ("lora.base_precision=nf4",)
UNFUSED = ("model.attention_backend=unfused",)
"""The one back end of Transformer Engine's attention that is no kernel."""


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    """Mesh and settings; unique within its model and precision."""
    model: str
    precision: str
    settings: tuple[str, ...] = ()
    layers: Literal["transformer_engine", "local", "both"] = "transformer_engine"
    """`both` compares the two in one process, which `train` would refuse in float32."""
    apex: bool = False
    """The machine has Apex's extension, so that weight gradients go straight to the main ones."""
    resumes: bool = False
    """Afterwards the last checkpoint is taken away, and its step is trained again."""

    @property
    def key(self) -> str:
        return f"{self.model} {self.precision} {self.name}"

    @property
    def capability(self) -> tuple[int, int]:
        """Generation of the GPU that has this precision."""
        return (10, 0) if self.precision == "fp8_mxfp8" else (9, 0)

    def has(self, *settings: str) -> bool:
        """Whether it is run with all of these."""
        return set(settings) <= set(self.settings)


LOCAL = [
    Case("plain", model, kind, layers="local") for model in FAMILIES for kind in ("fp32", "bf16")
]
"""What the local layers do, on one rank."""
_OTHERS = ("gemma2", "gemma3", "qwen3")
BF16 = [
    Case("TP2 SP, export", "llama", "bf16", SPLIT + EXPORTS, resumes=True),
    Case("TP2 SP, Apex", "llama", "bf16", SPLIT, apex=True),
    Case("TP2 SP packed resident", "llama", "bf16", SPLIT + PACKED + RESIDENT),
    Case("TP2 SP recompute full", "llama", "bf16", SPLIT + FULL),
    Case("PP2", "llama", "bf16", PP2),
    *(Case("TP2 SP", model, "bf16", SPLIT) for model in _OTHERS),
    *(Case("PP2 packed", model, "bf16", PP2 + PACKED) for model in _OTHERS),
    Case("TP2 SP shared", "llama", "bf16", SPLIT + SHARED),
]
FP8 = [
    Case("TP2 SP, export", "llama", "fp8_tensorwise", SPLIT + EXPORTS, resumes=True),
    Case("TP2 SP packed resident", "llama", "fp8_tensorwise", SPLIT + PACKED + RESIDENT),
    Case("TP2 SP recompute full", "llama", "fp8_tensorwise", SPLIT + FULL),
    # With a kernel of attention, of which there is none here, it is the MLP that is computed again.
    Case("TP2 SP recompute part", "llama", "fp8_tensorwise", SPLIT + SELECTIVE + AUTO),
    Case("PP2, Apex", "llama", "fp8_tensorwise", PP2, apex=True),
    Case("DP2 packed", "llama", "fp8_tensorwise", ZERO + PACKED),
    *(Case("TP2 SP", model, "fp8_tensorwise", SPLIT) for model in _OTHERS),
    Case("TP2 SP, Apex", "llama", "fp8_blockwise", SPLIT + SAVES, apex=True, resumes=True),
    Case("DP2 recompute full", "llama", "fp8_blockwise", ZERO + FULL),
    Case("TP2 SP packed", "gemma2", "fp8_blockwise", SPLIT + PACKED),
    Case("PP2", "gemma3", "fp8_blockwise", PP2),
    Case("TP2 packed resident", "qwen3", "fp8_blockwise", TP2 + PACKED + RESIDENT),
    Case("TP2 SP, Apex", "llama", "fp8_mxfp8", SPLIT + SAVES, apex=True, resumes=True),
    Case("DP2 recompute full", "llama", "fp8_mxfp8", ZERO + FULL),
    Case("TP2 SP packed", "gemma2", "fp8_mxfp8", SPLIT + PACKED),
    Case("PP2", "gemma3", "fp8_mxfp8", PP2),
    Case("TP2 packed resident", "qwen3", "fp8_mxfp8", TP2 + PACKED + RESIDENT),
]
ADAPTED = [
    Case("TP2 SP adapters", "llama", "bf16", SPLIT + ADAPTERS + SAVES, resumes=True),
    Case("TP2 SP adapters, Apex", "llama", "fp8_tensorwise", SPLIT + ADAPTERS, apex=True),
]
EXACT = [
    Case("TP2 SP", "llama", "fp32", SPLIT, layers="both"),
    Case("TP2 SP packed", "gemma2", "fp32", SPLIT + PACKED, layers="both"),
    Case("TP2 SP", "gemma3", "fp32", SPLIT, layers="both"),
    Case("PP2 packed", "gemma3", "fp32", PP2 + PACKED, layers="both"),
    Case("TP2 SP shared", "llama", "fp32", SPLIT + SHARED, layers="both"),
    Case("PP2 shared", "gemma3", "fp32", PP2 + SHARED, layers="both"),
    Case("TP2 SP shared", "gemma2", "fp32", SPLIT + SHARED, layers="both"),
    Case("TP2 SP", "qwen3", "fp32", SPLIT, layers="both"),
    Case("TP2 SP adapters", "llama", "fp32", SPLIT + ADAPTERS, layers="both"),
    Case("PP2 packed adapters", "gemma3", "fp32", PP2 + PACKED + ADAPTERS, layers="both"),
    Case("TP2 SP shared adapters", "llama", "fp32", SPLIT + SHARED + ADAPTERS, layers="both"),
]
FOUR_BITS = [
    Case("TP2 SP adapters over nf4", "llama", "bf16", SPLIT + ADAPTERS + NF4 + SAVES, resumes=True),
]
FOUR_BITS_EXACT = [
    Case("TP2 SP adapters over nf4", "llama", "fp32", SPLIT + ADAPTERS + NF4, layers="both"),
    Case(
        "PP2 packed adapters over nf4",
        "gemma3",
        "fp32",
        PP2 + PACKED + ADAPTERS + NF4,
        layers="both",
    ),
]
_NIGHTLY = (
    *(f"llama bf16 {name}" for name in (
        "TP2 SP recompute full", "TP2 SP, Apex")),
    *(f"llama fp8_tensorwise {name}" for name in (
        "TP2 SP packed resident", "TP2 SP recompute part")),
    "llama bf16 TP2 SP adapters",
    *(f"{model} fp8_mxfp8 {name}" for model, name in (
        ("llama", "DP2 recompute full"), ("gemma2", "TP2 SP packed"), ("gemma3", "PP2"),
        ("qwen3", "TP2 packed resident"))),
    *(f"{model} fp8_blockwise {name}" for model, name in (
        ("gemma3", "PP2"), ("qwen3", "TP2 packed resident"), ("llama", "DP2 recompute full"))),
    *(f"{model} bf16 PP2 packed" for model in ("gemma2", "qwen3")),
    *(f"{model} bf16 TP2 SP" for model in ("gemma2", "qwen3")),
    *(f"{model} fp8_tensorwise TP2 SP" for model in ("gemma2", "qwen3")),
    *(f"{model} fp32 {name}" for model, name in (
        ("gemma2", "TP2 SP shared"), ("gemma3", "TP2 SP"), ("gemma3", "PP2 packed"),
        ("llama", "TP2 SP shared"), ("llama", "TP2 SP shared adapters"),
        ("llama", "TP2 SP adapters over nf4"), ("gemma3", "PP2 packed adapters"))),
)  # fmt: skip
"""Cases whose parts others have as well; see `tests.support.tiers`."""
BF16, FP8, ADAPTED, EXACT, FOUR_BITS, FOUR_BITS_EXACT = (
    usual(cases, lambda case: case.key not in _NIGHTLY)
    for cases in (BF16, FP8, ADAPTED, EXACT, FOUR_BITS, FOUR_BITS_EXACT)
)
REHEARSED = [*BF16, *FP8, *ADAPTED, *EXACT, *FOUR_BITS, *FOUR_BITS_EXACT]
"""What Transformer Engine's layers do, on two ranks."""
BY_KEY = {case.key: case for case in (*LOCAL, *REHEARSED)}


def overrides(case: Case, folder: Path, layers: str) -> list[str]:
    """The command line of a case.

    Args:
        case: which.
        folder: with the inputs.
        layers: `"transformer_engine"` or `"local"`.
    """
    # Gemma 2 caps its scores, for which the attention is the project's own.
    automatic = layers == "local" or case.model == "gemma2" or case.has(*AUTO)
    return [
        f"model.restore_from_path={folder / case.model}",
        f"data.train_path={folder / 'pairs.jsonl'}",
        f"precision={case.precision}",
        f"model.global_batch_size={BATCH}",
        "model.micro_batch_size=1",
        "data.packing=false",
        "data.max_length=96",
        "data.max_prompt_length=48",
        "optim=adamw_constant",
        f"optim.lr={LEARNING_RATE}",
        "logger.tensorboard=false",
        f"trainer.max_steps={STEPS}",
        "trainer.max_epochs=null",
        "export_hf=false",
        *(AUTO if automatic else UNFUSED),
        *case.settings,
    ]


def save_inputs(folder: Path) -> None:
    """A Hugging Face directory of every model, and pairs of odd lengths."""
    tokenizer = models.llama3_tokenizer()
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    fields = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    for name, kind in FAMILIES.items():
        model = models.build(kind, **SHAPE, **fields, eos_token_id=stop)
        assert model.generation_config is not None
        model.generation_config.eos_token_id = stop
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_jsonl(folder / "pairs.jsonl", pairs(PAIRS))
