"""What the rehearsal trains: tiny models of every family, settings of the mesh, precisions.

Importable without pytest: ranks and tests both read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import models
from tests.support.data import pairs, write_jsonl

STEPS = 3
LAYERS = 4
KINDS = {"llama": "llama_untied", "gemma2": "gemma2", "gemma3": "gemma3", "qwen3": "qwen3"}
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
"""Small, and cut in two still multiples of what every FP8 recipe asks for."""


@dataclass(frozen=True)
class Case:
    """One run of `train`."""

    name: str
    """Mesh and settings; unique within its model and precision."""
    model: str
    precision: str
    overrides: tuple[str, ...] = ()
    resumes: bool = False
    """Afterwards take the last checkpoint away and train its steps again."""

    @property
    def key(self) -> str:
        return f"{self.model} {self.precision} {self.name}"

    @property
    def capability(self) -> tuple[int, int]:
        """Generation of the GPU that has this precision."""
        return (10, 0) if self.precision == "fp8_mxfp8" else (9, 0)


TP2 = ("model.tensor_model_parallel_size=2",)
SP = ("model.sequence_parallel=true",)
PP2 = ("model.pipeline_model_parallel_size=2",)
ZERO = ("optim.use_distributed_optimizer=true",)
PACKED = ("data.packing=true",)
RESIDENT = ("reference=resident",)
FULL = ("model.activations_checkpoint_granularity=full",)
EXPORTS = ("export_hf=true", "export_nemo=true")
SPLIT = TP2 + SP + ZERO

LOCAL = [Case("plain", model, kind) for model in KINDS for kind in ("fp32", "bf16")]
"""What the local layers do, on one rank."""
BF16 = [
    *(Case("TP2 SP", model, "bf16", SPLIT) for model in KINDS),
    Case("PP2", "llama", "bf16", PP2),
]
DELAYED = [Case("one", "llama", "fp8_delayed", ("trainer.check_initial_loss=false",))]
FP8 = [
    Case("TP2 SP", "llama", "fp8_tensorwise", SPLIT),
    Case("packed", "llama", "fp8_tensorwise", SPLIT + PACKED),
    Case("PP2", "llama", "fp8_tensorwise", PP2),
    Case("TP2 SP", "llama", "fp8_blockwise", SPLIT),
    Case("TP2 SP", "llama", "fp8_mxfp8", SPLIT),
    Case("DP2", "llama", "fp8_blockwise", ZERO),
    Case("DP2", "llama", "fp8_mxfp8", ZERO),
]
REHEARSED = [*BF16, *FP8, *DELAYED]


def overrides(case: Case, folder: Path) -> list[str]:
    """The command line of a case."""
    return [
        f"model.restore_from_path={folder / case.model}",
        f"data.train_path={folder / 'pairs.jsonl'}",
        f"precision={case.precision}",
        "model.global_batch_size=4",
        "model.micro_batch_size=1",
        "data.max_length=96",
        "data.max_prompt_length=48",
        "optim=adamw_constant",
        "optim.lr=1e-3",
        "logger.tensorboard=false",
        f"trainer.max_steps={STEPS}",
        "trainer.max_epochs=null",
        "export_hf=false",
        *case.overrides,
    ]


def save_inputs(folder: Path) -> None:
    """A Hugging Face directory of every model, and pairs of odd lengths."""
    tokenizer = models.llama3_tokenizer()
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    for name, kind in KINDS.items():
        model = models.build(
            kind,
            **SHAPE,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=stop,
        )
        model.generation_config.eos_token_id = stop
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_jsonl(folder / "pairs.jsonl", pairs(24))
