"""Memory that a checkpoint of 4 GiB takes: converted both ways, and read straight into a rank."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import TensorSpec
from nemo_gdpo.conversion.formats.safetensors_writer import plan_shards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 8192, "intermediate_size": 24576, "num_attention_heads": 64,
    "num_key_value_heads": 8, "num_hidden_layers": 3, "vocab_size": 1024,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GIB = 2**30
LARGEST = 2 * 24576 * 8192 * 2
"""Bytes of Megatron's gate and up in one, the largest tensor of either side."""
BOUND = 2 * GIB + LARGEST

MEASURED = """
import json, os, sys
os.fsync = lambda handle: None  # memory is measured, not the disk
from nemo_gdpo.conversion.cli import main
status = main(sys.argv[1:])
fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({"status": status, "peak": int(fields["VmHWM"].split()[0]) * 1024}))
"""

LOADED = """
import json, os, sys, torch
from pathlib import Path
from nemo_gdpo.conversion.live import load_hf_into_model, open_loadable
from tests.conversion.test_layouts import named_module

def status(field):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(lines[field].split()[0]) * 1024

bridge, source = open_loadable(Path(sys.argv[1]))
torch.set_default_dtype(torch.bfloat16)
shapes = json.loads(sys.argv[2])
model = named_module({f"decoder.layers.0.{name}": tuple(s) for name, s in shapes.items()})
before = status("VmRSS")
load_hf_into_model(model, source, bridge, layer_offset=1, tp_rank=1, tp_size=2)
assert not any(p.any() for p in model.parameters())  # NaN before, a hole's zeros now
print(json.dumps({"grown": status("VmHWM") - before}))
"""


def sparse_model(directory: Path) -> int:
    """Safetensors shards with a header and a hole behind it: zeros that take no room on the disk.

    Returns:
        Bytes of all tensors.
    """
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    shapes = ModelBridge.from_hf(directory).hf_shapes()
    specs = [TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    shards = plan_shards(specs, 1_500_000_000)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        entries, start = {}, 0
        for spec in shard:
            entries[spec.name] = {
                "dtype": "BF16",
                "shape": list(spec.shape),
                "data_offsets": [start, start + spec.nbytes],
            }
            start += spec.nbytes
            weight_map[spec.name] = file_name
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (directory / file_name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + start)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(spec.nbytes for spec in specs)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """Emptied afterwards: pytest keeps the directories of the last three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def peak(*arguments: str) -> int:
    """Largest resident set (VmHWM) of one conversion, in bytes, everything counted: the program,
    torch, buffers, and pages of files that are mapped."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stderr
    return int(found["peak"])


@pytest.mark.nightly
def test_peak_memory_both_ways(workplace: Path) -> None:
    size = sparse_model(workplace / "hf")
    assert size >= 4 * GIB
    inwards = peak("hf-to-megatron", str(workplace / "hf"), str(workplace / "megatron"))
    shutil.rmtree(workplace / "hf")
    outwards = peak(
        "megatron-to-hf",
        str(workplace / "megatron"),
        str(workplace / "back"),
        "--max-shard-gb",
        "3",
    )
    print(f"{size / GIB:.2f} GiB: in {inwards / GIB:.2f}, out {outwards / GIB:.2f} GiB")
    shards = list((workplace / "back").glob("*.safetensors"))
    assert len(shards) > 1
    assert sum(path.stat().st_size for path in shards) >= size
    assert inwards <= BOUND
    assert outwards <= BOUND
    # Well below the model itself: the bound would hold for a program that reads all of a small one.
    assert max(inwards, outwards) < size


def test_a_rank_reads_its_own_slices_only(workplace: Path) -> None:
    """One layer of three on one of two tensor-parallel ranks.

    Its own piece of gate and up is 0.375 GiB: mapped once, put together once. Reading the matrices
    first and cutting them then would take four times that.
    """
    sparse_model(workplace / "hf")
    piece = LARGEST // 2
    shapes = {
        "input_layernorm.weight": (8192,),
        "self_attention.linear_qkv.weight": (5120, 8192),
        "self_attention.linear_proj.weight": (8192, 4096),
        "pre_mlp_layernorm.weight": (8192,),
        "mlp.linear_fc1.weight": (24576, 8192),
        "mlp.linear_fc2.weight": (8192, 12288),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(workplace / "hf"), json.dumps(shapes)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(json.loads(done.stdout.splitlines()[-1])["grown"])
    print(f"above the parameters: {grown / GIB:.2f} GiB")
    assert grown <= 2 * piece + GIB // 8
