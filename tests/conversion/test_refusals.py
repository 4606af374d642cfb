"""Bad input: refused with a name and a remedy, and nothing is lost."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import MetadataIndex

from nemo_gdpo.conversion import atomic
from nemo_gdpo.conversion.convert import convert_hf_to_megatron, convert_megatron_to_hf
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.conversion.formats import hf_export
from nemo_gdpo.conversion.formats.dist_metadata import read_metadata
from nemo_gdpo.conversion.formats.dist_reader import check_dist_checkpoint
from nemo_gdpo.conversion.live import open_loadable
from nemo_gdpo.errors import RunError, UserError
from tests.conversion.conftest import ModelMaker


def conversion_refused(source: Path, pattern: str) -> str:
    destination = source.parent / "never"
    with pytest.raises(UserError, match=pattern) as caught:
        convert_hf_to_megatron(source, destination)
    assert "\n" not in str(caught.value)
    assert not destination.exists()
    return str(caught.value)


def refused(source: Path, pattern: str) -> None:
    """Conversion and reading it directly say the same."""
    said = conversion_refused(source, pattern)
    with pytest.raises(UserError) as caught:
        open_loadable(source)
    assert str(caught.value) == said


def change_tensors(source: Path, **changes: torch.Tensor | None) -> None:
    """Replace (or with None remove) tensors; `__` in a name stands for a dot."""
    path = source / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path)


def test_pickled_weights(make_model: ModelMaker) -> None:
    source = make_model()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, r"pickled weights only \(pytorch_model\.bin\).*save_pretrained")


def test_no_weights_and_no_directory(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model()
    (source / "model.safetensors").unlink()
    refused(source, "has no weights")
    refused(tmp_path / "absent", "config.json does not exist")


def test_missing_shard_is_named(make_model: ModelMaker) -> None:
    source = make_model(max_shard_size="20KB")
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.unlink()
    refused(source, rf"1 of \d+ shards are missing \({shard.name}\)")


def test_cut_off_shard_is_named(make_model: ModelMaker) -> None:
    source = make_model(max_shard_size="20KB")
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(source, rf"{shard.name} is damaged")


def test_shard_that_the_index_does_not_describe(make_model: ModelMaker) -> None:
    source = make_model(max_shard_size="20KB")
    first, second = sorted(source.glob("*.safetensors"))[:2]
    shutil.copy(second, first)
    refused(source, rf"{first.name} is damaged \(it and the index disagree")


def test_index_may_not_leave_its_directory(make_model: ModelMaker) -> None:
    source = make_model()
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(source, "outside of its directory")


def test_parts_of_one_matrix_have_one_type(make_model: ModelMaker) -> None:
    source = make_model()
    change_tensors(source, model__layers__0__self_attn__k_proj__weight=torch.zeros(24, 32).half())
    refused(source, r"k_proj\.weight.*have different types .*; convert with --dtype")


def test_missing_and_unexpected_tensors_are_listed(make_model: ModelMaker) -> None:
    source = make_model()
    change_tensors(source, model__norm__weight=None, model__norm__bias=torch.zeros(32))
    refused(source, r"missing: model\.norm\.weight; 1 tensors are unexpected: model\.norm\.bias")


def test_shape_that_the_config_does_not_say(make_model: ModelMaker) -> None:
    source = make_model()
    change_tensors(source, lm_head__weight=torch.zeros(103, 32))
    refused(source, r"lm_head\.weight is \[103, 32\].*\[101, 32\]")


def test_tied_head_has_to_be_the_embedding(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model(tie_word_embeddings=True)
    embedding = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(source, lm_head__weight=embedding + 1)
    refused(source, "tie_word_embeddings is true")
    change_tensors(source, lm_head__weight=embedding.clone())
    convert_hf_to_megatron(source, tmp_path / "megatron")


def test_old_rotary_buffers_are_left_out(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model()
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    change_tensors(source, **{name: torch.ones(6)})
    convert_hf_to_megatron(source, tmp_path / "megatron")


def test_shard_with_a_damaged_header_is_named(make_model: ModelMaker) -> None:
    source = make_model(max_shard_size="20KB")
    shard = sorted(source.glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[12] ^= 0xFF  # inside of the JSON
    shard.write_bytes(data)
    refused(source, rf"{shard.name} is damaged")
    data[:8] = b"\xff" * 8  # the header's length
    shard.write_bytes(data)
    refused(source, rf"{shard.name} is damaged")


def tokenizer_of(size: int) -> str:
    """tokenizer.json with that many tokens, the last of them added."""
    vocabulary = {f"t{number}": number for number in range(size - 1)}
    added = [{"id": size - 1, "content": "<|extra|>"}]
    return json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added})


def test_tokenizer_that_is_larger_than_the_embedding(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    """Both ways; one of the embedding's size, or smaller, is fine."""
    source = make_model()
    (source / "tokenizer.json").write_text(tokenizer_of(102))
    refused(source, r"has 102 tokens \(the last is '<\|extra\|>'\), the embedding only 101 rows")
    (source / "tokenizer.json").write_text(tokenizer_of(101))
    convert_hf_to_megatron(source, tmp_path / "megatron")
    (tmp_path / "megatron" / "hf_assets" / "tokenizer.json").write_text(tokenizer_of(102))
    export_refused(tmp_path / "megatron", "has 102 tokens")


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("vocab.json", json.dumps({"a": 0, "b": 150}), 151),
        ("tokenizer.json", json.dumps({"model": {"vocab": [["a", -1.0]] * 130}}), 130),
    ],
)
def test_tokenizers_of_other_kinds(
    make_model: ModelMaker, name: str, text: str, count: int
) -> None:
    source = make_model()
    (source / "tokenizer.json").unlink()
    (source / name).write_text(text)
    refused(source, f"has {count} tokens")


def test_a_damaged_tokenizer_is_named(make_model: ModelMaker) -> None:
    source = make_model()
    (source / "tokenizer.json").write_text('{"added_tokens": [{"content": "x"}]}')
    refused(source, r"tokenizer\.json is not the file of a tokenizer")
    (source / "tokenizer.json").write_text("{")
    refused(source, r"tokenizer\.json cannot be read as JSON")


def test_quantised_tensors(make_model: ModelMaker) -> None:
    source = make_model()
    change_tensors(source, model__norm__weight=torch.zeros(32, dtype=torch.int8))
    refused(source, "model.norm.weight is stored as I8")


def test_config_is_looked_at_first(make_model: ModelMaker) -> None:
    source = make_model()
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"quantization_config": {"bits": 4}}))
    refused(source, "quantised")


class Hostile:
    """Creates a file when it is read back by an unrestricted loader."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self._target),))


@pytest.fixture
def megatron(make_model: ModelMaker, tmp_path: Path) -> Path:
    convert_hf_to_megatron(make_model(), tmp_path / "megatron")
    return tmp_path / "megatron"


def export_refused(megatron: Path, pattern: str) -> None:
    destination = megatron.parent / "never"
    with pytest.raises(UserError, match=pattern):
        convert_megatron_to_hf(megatron, destination)
    assert not destination.exists()


def test_hostile_metadata_is_refused_and_runs_nothing(megatron: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (megatron / "dist" / ".metadata").write_bytes(pickle.dumps({"x": Hostile(victim)}))
    export_refused(megatron, r"refused, it names \w+\.mkdir")
    with pytest.raises(UserError, match="could run code"):
        check_dist_checkpoint(megatron / "dist")
    assert not victim.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cbuiltins\neval\n.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"ctorch.serialization\nload\n.",
        # A dotted path that starts at an allowed class.
        b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x11Metadata.__init__\x93.",
    ],
)
def test_other_names_are_refused(megatron: Path, stream: bytes) -> None:
    (megatron / "dist" / ".metadata").write_bytes(stream)
    export_refused(megatron, "refused, it names")


class _OfPython3112(pickle._Pickler):
    """Stores members of an enum as Python 3.11.2 does, Debian 12's; later releases store values."""

    def reducer_override(self, what: Any) -> Any:
        return (getattr, (type(what), what.name)) if isinstance(what, Enum) else NotImplemented


def stored_by_3112(what: Any) -> bytes:
    stream = io.BytesIO()
    _OfPython3112(stream, protocol=4).dump(what)
    return stream.getvalue()


def test_metadata_of_another_release_of_python_is_read(megatron: Path) -> None:
    metadata = read_metadata(megatron / "dist")
    stream = stored_by_3112(metadata)
    assert b"getattr" in stream
    (megatron / "dist" / ".metadata").write_bytes(stream)
    assert read_metadata(megatron / "dist") == metadata


@pytest.mark.parametrize(
    "stream",
    [
        # getattr(Metadata, "__init__"), and of an enum what is no member.
        b"cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.metadata\nMetadata\nV__init__\ntR.",
        b"cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.planner\nWriteItemType\nV__class__\ntR.",
    ],
)
def test_getattr_gets_members_of_enums_and_nothing_else(megatron: Path, stream: bytes) -> None:
    (megatron / "dist" / ".metadata").write_bytes(stream)
    export_refused(megatron, r"refused, it names builtins\.getattr")


def test_metadata_may_not_point_outside(megatron: Path) -> None:
    metadata = read_metadata(megatron / "dist")
    index = MetadataIndex("decoder.final_layernorm.weight", torch.Size([0]))
    metadata.storage_data[index].relative_path = "../../secret"
    (megatron / "dist" / ".metadata").write_bytes(pickle.dumps(metadata))
    export_refused(megatron, "outside of the checkpoint")


def test_hostile_tensor_runs_nothing(megatron: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    metadata = read_metadata(megatron / "dist")
    file = megatron / "dist" / "evil.distcp"
    torch.save(Hostile(victim), file)
    info = metadata.storage_data[MetadataIndex("decoder.final_layernorm.weight", torch.Size([0]))]
    info.relative_path, info.offset, info.length = file.name, 0, file.stat().st_size
    (megatron / "dist" / ".metadata").write_bytes(pickle.dumps(metadata))
    export_refused(megatron, r"final_layernorm\.weight is damaged \(evil\.distcp")
    assert not victim.exists()


def test_hostile_object_beside_the_tensors_runs_nothing(megatron: Path, tmp_path: Path) -> None:
    """Megatron's loader reads these without any restriction."""
    victim = tmp_path / "victim"
    metadata = read_metadata(megatron / "dist")
    file = megatron / "dist" / "evil.distcp"
    torch.save([Hostile(victim)], file)
    info = metadata.storage_data[MetadataIndex("common_state/shard_0_1")]
    info.relative_path, info.offset, info.length = file.name, 0, file.stat().st_size
    (megatron / "dist" / ".metadata").write_bytes(pickle.dumps(metadata))
    export_refused(
        megatron, r"evil\.distcp: common_state/shard_0_1 is refused, it names \w+\.mkdir"
    )
    assert not victim.exists()
    file.write_bytes(pickle.dumps(Hostile(victim)))
    info.length = file.stat().st_size
    (megatron / "dist" / ".metadata").write_bytes(pickle.dumps(metadata))
    export_refused(megatron, "refused, it cannot be checked")
    assert not victim.exists()


def test_legacy_common_file_is_refused(megatron: Path) -> None:
    (megatron / "dist" / "common.pt").write_bytes(b"anything")
    export_refused(megatron, r"common\.pt is refused")


def test_damaged_checkpoint_is_named(megatron: Path) -> None:
    file = megatron / "dist" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-4000])
    export_refused(megatron, r"is damaged \(__0_0\.distcp")


def test_checkpoint_of_another_architecture(megatron: Path) -> None:
    path = megatron / "model_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"num_layers": 3}))
    export_refused(megatron, r"7 tensors are missing|6 tensors are missing")
    path.write_text(json.dumps(values | {"layernorm_epsilon": 1.0}))
    export_refused(megatron, "describes another model")
    path.write_text(json.dumps(values | {"format_version": 9}))
    export_refused(megatron, "format version 9")


def snapshot(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_failed_export_keeps_the_previous_one(
    megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "out"
    convert_megatron_to_hf(megatron, destination)
    before = snapshot(destination)

    def full(directory: Path, *args: Any, **kwargs: Any) -> list[str]:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_export, "write_shards", full)
    with pytest.raises(RunError, match=r"No space left on device.*untouched"):
        convert_megatron_to_hf(megatron, destination)
    assert snapshot(destination) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "megatron", "out"]


def test_damage_found_in_the_middle_leaves_nothing(megatron: Path, tmp_path: Path) -> None:
    file = megatron / "dist" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-4000])
    export_refused(megatron, "is damaged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "megatron"]


def test_full_disk_in_the_middle_of_an_import(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")

    source = make_model()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"could not be written .*PytorchStreamWriter"):
        convert_hf_to_megatron(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_too_little_space_is_said_before(megatron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(megatron)._replace(free=10)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage)
    export_refused(megatron, "GiB are needed")


def test_another_conversion_may_be_replaced_and_nothing_else(
    make_model: ModelMaker, megatron: Path, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    convert_megatron_to_hf(megatron, destination)
    convert_hf_to_megatron(make_model("other", rms_norm_eps=1e-3), tmp_path / "m2")
    convert_megatron_to_hf(tmp_path / "m2", destination)
    assert json.loads((destination / "config.json").read_text())["rms_norm_eps"] == 1e-3
    (destination / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        convert_megatron_to_hf(megatron, destination)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and was not written by a conversion"):
        convert_megatron_to_hf(megatron, foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_fingerprint_needs_weights(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    with pytest.raises(UserError, match="no weights"):
        weights_fingerprint(tmp_path)
