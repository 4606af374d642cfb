"""The tensors of a NeMo archive's distributed checkpoint, under the names that the engine knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.conversion.families import FAMILIES
from nemo_gdpo.conversion.formats.dist_metadata import METADATA
from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource
from nemo_gdpo.errors import UserError

WEIGHTS = "model_weights"
PREFIX = "model."
_LAYERS = "decoder.layers."
_NUMBERED = re.compile(r"^decoder\.layers\.\d+\.")
_IGNORED = ("_extra_state", "rotary_pos_emb.inv_freq")
"""Endings of what is not a weight: Transformer Engine's scaling state, the frequencies of rope."""


def find_weights(archive: Path, source: Path, family: str) -> Path:
    """The distributed checkpoint of an unpacked archive.

    Raises:
        UserError: it has pickles or a zarr checkpoint instead, or nothing.
    """
    directory = archive / WEIGHTS
    if (directory / METADATA).is_file():
        return directory
    pickles = sorted(path.relative_to(archive).as_posix() for path in archive.rglob("*.ckpt"))
    script = f"convert_{family}_nemo_to_hf.py"
    remedy = (
        "convert it where it was written, in a NeMo 1 container such as "
        f"nvcr.io/nvidia/nemo:24.07: python /opt/NeMo/scripts/checkpoint_converters/{script} "
        f"--input_name_or_path {source} --output_path pytorch_model.bin --hf_input_path BASE_MODEL "
        "--hf_output_path HF_DIR; then hf-to-megatron HF_DIR"
    )
    if pickles:
        raise UserError(
            f"{source}: has pickled weights ({', '.join(pickles[:3])}), which can run code when "
            f"they are loaded; {remedy}"
        )
    if any(directory.glob("*/.zarray")):
        raise UserError(f"{source}: its weights are in zarr, which is not read here; {remedy}")
    raise UserError(f"{source}: has no {WEIGHTS}/{METADATA}; copy the archive again")


class NemoTensorSource:
    """A `TensorSource` over an archive's tensors, layer by layer.

    A key without a layer's number holds all layers, [layers, ...]; a key with one is taken as it
    is, and so are the norms' names of megatron's local layers.
    """

    def __init__(self, directory: Path, hf_config: Mapping[str, Any], family: str) -> None:
        """Read the list of tensors.

        Args:
            directory: `model_weights`.
            hf_config: for the number of layers.
            family: for the local layers' names.

        Raises:
            UserError: the checkpoint is damaged or could run code, or has tensors of something
                else than a GPT.
        """
        self._directory = directory
        # Objects beside the tensors (common.pt, extra states) are never loaded here.
        self._source = DistTensorSource(directory, others_too=False)
        self._place: dict[str, tuple[str, int | None]] = {}
        local = FAMILIES[family].local_names
        layers = int(hf_config["num_hidden_layers"])
        for key, shape in self._source.shapes().items():
            if key.endswith(_IGNORED):
                continue
            if not key.startswith(PREFIX):
                raise UserError(
                    f"{directory}: {key} is not a tensor of a GPT (no {PREFIX!r} before)"
                )
            name = key.removeprefix(PREFIX)
            if not name.startswith(_LAYERS) or _NUMBERED.match(name):
                self._add(_with_layer_norms(name, local), key, None)
                continue
            if shape[0] != layers:
                raise UserError(
                    f"{directory}: {key} has {shape[0]} layers, the configuration says {layers}"
                )
            inner = name.removeprefix(_LAYERS)
            for layer in range(layers):
                self._add(f"{_LAYERS}{layer}.{local.get(inner, inner)}", key, layer)

    def _add(self, name: str, key: str, layer: int | None) -> None:
        if name in self._place:
            raise UserError(f"{self._directory}: {name} is there twice, as {key} too")
        self._place[name] = (key, layer)

    @property
    def where(self) -> str:
        """The directory."""
        return str(self._directory)

    def files(self) -> list[Path]:
        """The files with the tensors, sorted."""
        return sorted(path for path in self._directory.iterdir() if path.suffix == ".distcp")

    def common_dtype(self) -> torch.dtype:
        """The type that every tensor can be stored in without loss."""
        widest = torch.float16
        order = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
        for name in self._place:
            if self.dtype(name) not in order:
                raise UserError(f"{self.where}: {name} is {self.dtype(name)}; only floats convert")
            widest = max(widest, self.dtype(name), key=order.index)
        return widest

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, layer by layer."""
        stored = self._source.shapes()
        return {
            name: stored[key] if layer is None else stored[key][1:]
            for name, (key, layer) in self._place.items()
        }

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor is stored in."""
        return self._source.dtype(self._place[name][0])

    def tensor(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            UserError: a part is missing or damaged; its file is named.
        """
        key, layer = self._place[name]
        return self._source.tensor(key) if layer is None else self._source.row(key, layer)


def _with_layer_norms(name: str, local: Mapping[str, str]) -> str:
    """A numbered layer's tensor under Transformer Engine's name; anything else as it is."""
    matched = _NUMBERED.match(name)
    if matched is None:
        return name
    inner = name[matched.end() :]
    return matched[0] + local.get(inner, inner)
