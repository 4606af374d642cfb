"""One rank: weights read straight from Hugging Face against those of a conversion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from nemo_gdpo.conversion.formats.hf_source import HuggingFaceSource
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.builder import ParallelLayout, build_gpt_chunks, transformer_config
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training import model_source
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.model_source import ModelSource, open_source


@dataclass
class Chunks:
    """All of a preference model that weights are loaded into."""

    gpt_chunks: list[Any]
    hf_assets: Path | None = field(default=None)


def _filled(source: ModelSource, layout: ParallelLayout, precision: str) -> Chunks:
    """This rank's chunks, built anew; every parameter is NaN before it is loaded."""
    platform = current_platform()
    model = source.model_config
    config = transformer_config(model, layout, precision, platform)
    longest = min(64, model.max_position_embeddings)
    chunks = build_gpt_chunks(model, config, layout, platform, max_sequence_length=longest)
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.fill_(float("nan"))
    holder = Chunks(chunks)
    source.load_into(holder)  # type: ignore[arg-type]
    return holder


def _files(directory: Path) -> dict[str, bytes]:
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in directory.rglob("*")
        if p.is_file()
    }


def _same_assets(direct: ModelSource, converted: ModelSource, scratch: Path) -> bool:
    """Whether checkpoints of both runs would carry the same files."""
    found = []
    for name, source in (("direct", direct), ("converted", converted)):
        (scratch / name).mkdir(parents=True)
        source.write_assets(scratch / name)
        found.append(_files(scratch / name))
    return len(found[0]) > 2 and found[0] == found[1]


def compare(root: Path, mesh: Mesh, precisions: Sequence[str]) -> list[dict[str, Any]]:
    """Load `root/hf` and `root/megatron` on this mesh and compare every parameter, bit for bit.

    Returns:
        For each precision the number of parameters over all ranks, the names of those that differ,
        and whether both sources agree on everything else that a run takes from them.
    """
    layout = mesh.layout
    direct, converted = (
        open_source(str(root / name), mesh, divisible_by=layout.vocab_divisible_by)
        for name in ("hf", "megatron")
    )
    agreed = {
        "read_directly": direct.shards is not None and converted.shards is None,
        "same_source": (direct.fingerprint, direct.name, direct.padded_vocab_size)
        == (converted.fingerprint, converted.name, converted.padded_vocab_size),
    }
    if mesh.is_main:
        scratch = root / f"assets_{layout.tensor}{layout.pipeline}{layout.virtual_pipeline}"
        agreed["same_assets"] = _same_assets(direct, converted, scratch)
    return [_compare(direct, converted, layout, precision) | agreed for precision in precisions]


def _compare(
    direct: ModelSource, converted: ModelSource, layout: ParallelLayout, precision: str
) -> dict[str, Any]:
    one, other = (_filled(source, layout, precision) for source in (direct, converted))
    count, unequal = 0, []
    for mine, theirs in zip(one.gpt_chunks, other.gpt_chunks, strict=True):
        expected = dict(theirs.named_parameters())
        assert expected.keys() == {name for name, _ in mine.named_parameters()}
        for name, parameter in mine.named_parameters():
            count += 1
            wanted = expected[name]
            if parameter.dtype != wanted.dtype or not torch.equal(parameter, wanted):
                unequal.append(name)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (count, unequal))
    return {
        "parameters": sum(found[0] for found in gathered),
        "unequal": sorted({name for found in gathered for name in found[1]}),
    }


def _complaints(action: Callable[[], object]) -> list[str | None]:
    """What every rank says when an action is refused, in order of the ranks; collective."""
    said: str | None = None
    try:
        action()
    except UserError as error:
        said = str(error)
    gathered: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, said)
    return gathered


class _OtherFiles(HuggingFaceSource):
    """A node whose copy of the model has another size."""

    def files(self) -> dict[str, int]:
        return {name: size + 1 for name, size in super().files().items()}


def refusals(root: Path, mesh: Mesh) -> dict[str, list[str | None]]:
    """Provoke what one rank alone finds; the complaints of all of them.

    Args:
        root: has `hf/`, and `cut/`, a copy whose weights are cut off.
        mesh: of four ranks.
    """
    layout, last = mesh.layout, mesh.world_size - 1

    def opened(name: str) -> ModelSource:
        return open_source(str(root / name), mesh, divisible_by=layout.vocab_divisible_by)

    def unreadable() -> None:
        source = opened("hf")
        if mesh.rank == last:
            assert source.shards is not None
            source.shards._source = root / "gone"
        _filled(source, layout, "fp32")

    found = {"main rank": _complaints(lambda: opened("cut")), "read": _complaints(unreadable)}
    here = mock.patch.object(model_source, "HuggingFaceSource", _OtherFiles)
    with here if mesh.rank == last else contextlib.nullcontext():
        found["other files"] = _complaints(lambda: opened("hf"))
    here = mock.patch.object(model_source, "is_hf_directory", lambda path: False)
    with here if mesh.rank == last else contextlib.nullcontext():
        found["not seen"] = _complaints(lambda: opened("hf"))
    return found
