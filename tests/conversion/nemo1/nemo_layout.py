"""Builds a `.nemo` archive as NeMo 1 did, with megatron's own distributed checkpoint writer.

    python -m tests.conversion.nemo1.nemo_layout SETTINGS...

SETTINGS are JSON files: `hf` (the model), `archive` (what to write), `config` (of
model_config.yaml), `files` (name in the archive -> path), `norm_offset` (added to norm weights),
`first_norm` (None, or a value that training gave the final norm's first weight), `padded` (rows of
the embedding), `compress`, `dtype`.

The keys and shapes are NeMo 1's: one key for all layers with the layer as a first dimension, each
layer a separate piece, everything under `model.`, extra states as objects.
"""

# ruff: noqa: E402 - the platform comes before megatron

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from nemo_gdpo.platform import current_platform

PLATFORM = current_platform()  # before megatron is imported

import torch
import torch.distributed as dist
import yaml
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from transformers import AutoModelForCausalLM

PREFIX = "model."
LAYER = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
}


def _qkv(state: dict[str, torch.Tensor], prefix: str, config: Any) -> torch.Tensor:
    """As the converter of NeMo did it: query heads of a group, its key, its value; a loop."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = state[f"{prefix}self_attn.q_proj.weight"].shape[0] // heads
    q, k, v = (
        state[f"{prefix}self_attn.{name}_proj.weight"].view(-1, size, config.hidden_size)
        for name in "qkv"
    )
    rows = []
    for group in range(groups):
        share = heads // groups
        rows += [q[group * share : (group + 1) * share], k[group : group + 1], v[group : group + 1]]
    return torch.cat(rows).reshape(-1, config.hidden_size)


def nemo_state(hf: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The sharded state dict that NeMo saved."""
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=getattr(torch, settings["dtype"]))
    state, config = model.state_dict(), model.config
    layers = config.num_hidden_layers
    found: dict[str, Any] = {}

    def whole(name: str, tensor: torch.Tensor) -> None:
        found[name] = ShardedTensor.from_rank_offsets(PREFIX + name, tensor.contiguous())

    def of_layer(layer: int, name: str, tensor: torch.Tensor) -> None:
        key = f"{PREFIX}decoder.layers.{name}"
        found[f"{layer}.{name}"] = ShardedTensor.from_rank_offsets(
            key, tensor.contiguous(), (0, layer, layers), prepend_axis_num=1
        )

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        rows = settings["padded"] - tensor.shape[0]
        # What training leaves in rows that no token uses.
        return torch.cat([tensor, torch.full((rows, tensor.shape[1]), 7.0, dtype=tensor.dtype)])

    whole("embedding.word_embeddings.weight", padded(state["model.embed_tokens.weight"]))
    if not config.tie_word_embeddings:
        whole("output_layer.weight", padded(state["lm_head.weight"]))
    offset = settings["norm_offset"]
    final = state["model.norm.weight"] + offset
    if settings["first_norm"] is not None:
        final[0] = settings["first_norm"]
    whole("decoder.final_layernorm.weight", final)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        of_layer(layer, "self_attention.linear_qkv.weight", _qkv(state, prefix, config))
        gate, up = (state[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        of_layer(layer, "mlp.linear_fc1.weight", torch.cat([gate, up]))
        for name, nemo in LAYER.items():
            tensor = state[prefix + name]
            of_layer(layer, nemo, tensor + offset if "norm" in nemo else tensor)
        extra = "self_attention.core_attention._extra_state"
        found[f"{layer}.{extra}"] = ShardedObject(
            f"{PREFIX}decoder.layers.{extra}", io.BytesIO(b"state"), (layers,), (layer,)
        )
    return found


def build(hf: Path, settings: dict[str, Any], archive: Path) -> None:
    """Write the archive."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        weights = root / "model_weights"
        weights.mkdir()
        dist_checkpointing.save(nemo_state(hf, settings), str(weights), ("torch_dist", 1))
        # megatron-core of that time kept what is not a tensor in a pickle.
        torch.save({"checkpoint_version": 3.0}, weights / "common.pt")
        (root / "model_config.yaml").write_text(yaml.safe_dump(settings["config"]))
        for name, path in settings["files"].items():
            (root / name).write_bytes(Path(path).read_bytes())
        with tarfile.open(archive, "w:gz" if settings["compress"] else "w") as tar:
            tar.add(root, arcname=".")


if __name__ == "__main__":
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1)
    for description in sys.argv[1:]:
        one = json.loads(Path(description).read_text())
        build(Path(one["hf"]), one, Path(one["archive"]))
