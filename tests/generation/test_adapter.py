"""An adapter to sample with: what identifies it, and what vLLM is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemo_gdpo.conversion.formats.peft import look_at_peft
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.engine_arguments import engine_arguments
from nemo_gdpo.generation.model import _with_adapter
from nemo_gdpo.generation.types import EngineSettings


def write(directory: Path, *, rank: int = 4, kind: str = "LORA", base: str | None = "b") -> Path:
    directory.mkdir(exist_ok=True)
    settings = json.dumps({"peft_type": kind, "r": rank})
    (directory / "adapter_config.json").write_text(settings)
    header = {} if base is None else {"base_sha256": base}
    tensors = {"lora_A.weight": torch.ones(rank, 2)}
    save_file(tensors, directory / "adapter_model.safetensors", metadata=header)
    return directory


def test_the_hash_is_of_base_settings_and_tensors(tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", base=None)
    one, rank = _with_adapter(adapter, "base")
    assert rank == 4
    assert _with_adapter(adapter, "base") == (one, 4)
    assert _with_adapter(adapter, "other")[0] != one
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 9}')
    assert _with_adapter(adapter, "base")[0] != one


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an adapter of another model than model\.restore_from"):
        _with_adapter(write(tmp_path / "a", base="b"), "c")
    with pytest.raises(UserError, match="its rank is 513, and vLLM adds adapters up to 512"):
        _with_adapter(write(tmp_path / "b", rank=513), "b")
    with pytest.raises(UserError, match="peft_type is IA3"):
        look_at_peft(write(tmp_path / "c", kind="IA3"))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        look_at_peft(tmp_path / "a")


@pytest.mark.parametrize(("rank", "told"), [(1, 1), (4, 8), (16, 16), (17, 32), (512, 512)])
def test_vllm_is_told_a_rank_that_it_has(rank: int, told: int) -> None:
    settings = EngineSettings(
        "/m", "float32", 1, 64, None, None, 8, 8, False, adapter="/a", adapter_rank=rank
    )
    arguments = engine_arguments(settings, cpu=True)
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, told)


def test_without_an_adapter_nothing_is_said_of_one() -> None:
    settings = EngineSettings("/m", "float32", 1, 64, None, None, 8, 8, False)
    assert not {"enable_lora", "max_lora_rank"} & engine_arguments(settings, cpu=True).keys()
