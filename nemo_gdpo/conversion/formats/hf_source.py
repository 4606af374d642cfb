"""Tensors of a Hugging Face directory, read from safetensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import check_shapes
from nemo_gdpo.conversion.layouts import Slice
from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged ({reason}); download it again")


def _pickled_only(source: Path) -> UserError:
    names = sorted(p.name for p in source.iterdir() if p.suffix in _PICKLED)
    if names:
        return UserError(
            f"{source} has pickled weights only ({', '.join(names[:3])}), which can run code when "
            'they are loaded; convert them on a machine that may: python -c "from transformers '
            "import AutoModelForCausalLM as M, AutoTokenizer as T; [C.from_pretrained("
            f"'{source}').save_pretrained('NEW_DIRECTORY') for C in (M, T)]\""
        )
    return UserError(
        f"{source} has no weights ({SINGLE} or {INDEX}); download the model completely"
    )


def weight_files(source: Path) -> dict[str, list[str] | None]:
    """Shards of a Hugging Face directory -> the tensors that the index expects in each.

    None stands for a single file, whose own header is the index.

    Raises:
        UserError: no safetensors, a damaged index, or a missing shard.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a directory; give the directory of a Hugging Face model")
    index = source / INDEX
    if not index.is_file():
        if not (source / SINGLE).is_file():
            raise _pickled_only(source)
        return {SINGLE: None}
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, "it has no weight_map")
    shards: dict[str, list[str] | None] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise _damaged(index, f"it names a file outside of its directory, {shard!r}")
        tensors = shards.setdefault(shard, [])
        assert tensors is not None
        tensors.append(name)
    missing = sorted(shard for shard in shards if not (source / shard).is_file())
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(shards)} shards are missing "
            f"({', '.join(missing[:3])}); download the model completely"
        )
    return dict(sorted(shards.items()))


class HuggingFaceSource:
    """A `TensorSource` over safetensors shards. Opening it reads headers only."""

    def __init__(self, source: Path) -> None:
        """Read the header of every shard.

        Raises:
            UserError: no safetensors, or a missing or damaged shard.
        """
        self._source = source
        self._of: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for shard, expected in weight_files(source).items():
            self._open(shard, expected)

    def _open(self, shard: str, expected: list[str] | None) -> None:
        path = self._source / shard
        try:
            file: Any = safe_open(path, framework="pt", device="cpu")
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from None
        if expected is not None and set(expected) != set(names):
            differing = sorted(set(expected) ^ set(names))
            raise _damaged(path, f"it and the index disagree about {', '.join(differing[:3])}")
        for name, piece in slices.items():
            kind = piece.get_dtype()
            if kind not in _DTYPES:
                raise UserError(
                    f"{path}: {name} is stored as {kind}; only unquantised weights "
                    f"({', '.join(_DTYPES)}) can be converted"
                )
            self._of[name] = shard
            self._shapes[name] = tuple(piece.get_shape())
            self._dtypes[name] = _DTYPES[kind]

    @property
    def where(self) -> str:
        """The directory."""
        return str(self._source)

    def files(self) -> dict[str, int]:
        """Name -> bytes of every shard."""
        return {
            shard: (self._source / shard).stat().st_size for shard in sorted(set(self._of.values()))
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return dict(self._shapes)

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor is stored in."""
        return self._dtypes[name]

    def tensor(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            UserError: the shard cannot be read; it is named.
        """
        return self._read(name, lambda file: file.get_tensor(name))

    def part(self, name: str, wanted: Slice) -> Tensor:
        """Read a range of one dimension of a tensor; the rest of it is not read.

        Raises:
            UserError: the shard cannot be read; it is named.
        """
        if wanted.start == wanted.stop:
            shape = list(self._shapes[name])
            shape[wanted.dim] = 0
            return torch.empty(shape, dtype=self._dtypes[name])
        index = (*[slice(None)] * wanted.dim, slice(wanted.start, wanted.stop))
        return self._read(name, lambda file: file.get_slice(name)[index])

    def _read(self, name: str, get: Callable[[Any], Tensor]) -> Tensor:
        shard = self._of[name]
        try:
            # Opened anew for each tensor: a mapping that lives on keeps all pages that were read.
            with safe_open(self._source / shard, framework="pt", device="cpu") as file:
                return get(file)
        except (OSError, SafetensorError) as error:
            raise _damaged(self._source / shard, f"{name}: {error}") from None


def _convertible_shapes(
    bridge: ModelBridge, source: HuggingFaceSource
) -> Mapping[str, tuple[int, ...]]:
    """The source's tensors without those that follow from others."""
    derived = bridge.family.derived
    found = {n: shape for n, shape in source.shapes().items() if not n.endswith(derived)}
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if bridge.config.tie_word_embeddings and head in found and embedding in found:
        if not torch.equal(source.tensor(head), source.tensor(embedding)):
            raise UserError(
                f"{source.where}: tie_word_embeddings is true, and {head} differs from "
                f"{embedding}; set it to false in config.json, or remove the tensor"
            )
        del found[head]
    return found


def open_hf(source: Path, bridge: ModelBridge) -> HuggingFaceSource:
    """Open a Hugging Face directory and check its tensors against the architecture.

    Raises:
        UserError: missing, damaged or foreign weights; names and files are listed.
    """
    opened = HuggingFaceSource(source)
    check_shapes(opened.where, bridge.hf_shapes(), dict(_convertible_shapes(bridge, opened)))
    return opened
