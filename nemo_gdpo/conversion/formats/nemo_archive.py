"""This project's `.nemo`: an uncompressed tar of a checkpoint's weights and NeMo's configuration.

    dist/              the weights alone: megatron-core's format, loads under any mesh
    model_config.json  the architecture, the padded vocabulary, where the weights came from
    hf_assets/         config.json, tokenizer, chat template: all that an export needs
    model_card.json    what is known for the model card of an export
    model_config.yaml  NeMo's: `run` is a run's resolved configuration with its `end_token_id`,
                       `target` the class that restores it

`nemo_gdpo.nemo` writes one from a model on a mesh, `convert megatron-to-nemo` from a checkpoint.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

from nemo_gdpo.config.base import plain_data
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.yaml_files import yaml_text
from nemo_gdpo.io.files import replacing
from nemo_gdpo.io.manifest import LOCK

CONFIG_YAML = "model_config.yaml"
TARGETS: Mapping[str, str] = {
    "dpo": "nemo_gdpo.nemo.classes.MegatronGPTDPOModel",
    "ipo": "nemo_gdpo.nemo.classes.MegatronGPTDPOModel",
    "gdpo": "nemo_gdpo.nemo.classes.MegatronGPTGDPOModel",
    "odpo": "nemo_gdpo.nemo.classes.MegatronGPTODPOModel",
    "adpo": "nemo_gdpo.nemo.classes.MegatronGPTADPOModel",
}
"""Value of `objective.name` -> the class of its paper."""
SHARED_TARGET = "nemo_gdpo.nemo.model.MegatronGPTPreferenceModel"


def target_of(objective: str) -> str:
    """Path of the class for a value of `objective.name`; `nemo_gdpo.nemo.classes` has them."""
    return TARGETS.get(objective, SHARED_TARGET)


def config_yaml(config: RunConfig, end_token_id: int) -> str:
    """NeMo's `model_config.yaml`, as a model of this configuration would write it."""
    run = {**plain_data(config), "end_token_id": end_token_id}
    return yaml_text({"run": run, "target": target_of(config.objective.name)})


def pack(directory: Path, archive: Path) -> None:
    """Move the files of a directory into an archive; the same files give the same bytes.

    Each file is removed once it is in the archive, so the disk needs room for the archive and the
    largest file. The archive takes its place complete and forced to disk, or not at all.

    Args:
        directory: laid out as an archive is; a writer's lock stays outside.
        archive: its directory exists.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    with replacing(archive) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for path in files:
            if path != directory / LOCK:
                tar.add(path, arcname=path.relative_to(directory).as_posix(), filter=_plain)
                path.unlink()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member without who wrote it, and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member
