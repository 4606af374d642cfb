"""What slurm/train.sh has to know of a run: `python slurm/stages.py plan|finish OVERRIDES...`.

`plan` changes nothing. It prints `NAME VALUE` lines: where the run writes, what it starts from, and
which stages are done. `finish` writes the prompts to sample for as well, where there are none yet.
Overrides are those of `nemo-gdpo train`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nemo_gdpo.config.base import plain_data
from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.request import read_request
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.conversion.atomic import MARKER, why_incomplete
from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from nemo_gdpo.io.manifest import MANIFEST

FLAGS = ("--config FILE",)
PROMPTS = 200
"""Distinct prompts of the validation pairs that are sampled for."""
PLACE = ("devices", "num_nodes")
"""Keys of `trainer` that say where a run takes place, not which run it is."""


def finished_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint of the last step of just this run; None where something is left to train.

    Files are judged by their sizes. What is odd is left to `nemo-gdpo train` to name.
    """
    output = Path(config.output_dir)
    try:
        before = read_config(output / "config.yaml", TRAIN)
        newest = output / "checkpoints" / (output / "checkpoints" / "latest").read_text().strip()
        state = json.loads((newest / "trainer_state.json").read_text())
        files = json.loads((newest / MANIFEST).read_text())["files"]
        if any((newest / name).stat().st_size != entry["bytes"] for name, entry in files.items()):
            return None
        if state["step"] < state["identity"]["total_steps"]:
            return None
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None
    return newest.absolute() if _which_run(before) == _which_run(config) else None


def _which_run(config: RunConfig) -> dict[str, object]:
    plain = plain_data(config)
    plain["trainer"] = {k: v for k, v in plain["trainer"].items() if k not in PLACE}
    return plain


def is_exported(hf: Path, checkpoint: Path) -> bool:
    """Whether `hf` is complete, and of this checkpoint: every later one is newer than it."""
    if why_incomplete(hf) is not None:
        return False
    return (hf / MARKER).stat().st_mtime >= (checkpoint / MANIFEST).stat().st_mtime


def check_gpus(given: int) -> None:
    """Refuse a node whose GPUs torch does not see: training would run on its CPUs.

    Args:
        given: GPUs that Slurm has given the job on this node.

    Raises:
        UserError: there are fewer.
    """
    if given == 0:
        return
    import torch

    seen = torch.cuda.device_count()
    if seen < given:
        raise UserError(
            f"the job has {given} GPUs on this node and torch sees {seen} (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); look for the driver, for "
            "apptainer's --nv, and for a CPU build of torch in NEMO_GDPO_TRAINING_PYTHON"
        )


def prompts_of(config: RunConfig) -> Path | None:
    """`output_dir/prompts.jsonl`, made of the first validation pairs; None where there are none.

    Raises:
        UserError: the pairs cannot be read.
    """
    target = Path(config.output_dir).absolute() / "prompts.jsonl"
    if not target.is_file():
        rows = list(islice(_distinct_prompts(config), PROMPTS))
        if not rows:
            return None
        partial = target.with_suffix(".partial")
        partial.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        partial.replace(target)
    return target


def _distinct_prompts(config: RunConfig) -> Iterator[str]:
    from nemo_gdpo.data.prepared import is_prepared
    from nemo_gdpo.data.readers import read_pairs

    data = config.data
    # Of tokenised pairs the text is gone.
    if data.validation_path is None or is_prepared(Path(data.validation_path)):
        return
    seen: set[str] = set()
    pairs = read_pairs(
        data.validation_path,
        format=data.reader_format,
        split=data.validation_split,
        on_bad_pair=data.on_bad_pair,
    )
    for pair in pairs:
        key = json.dumps(pair.prompt, ensure_ascii=False)
        if key not in seen:
            seen.add(key)
            yield json.dumps({"id": pair.id, "prompt": pair.prompt}, ensure_ascii=False)


def described(config: RunConfig) -> dict[str, str]:
    """The lines of `plan`; an empty value where there is no such thing."""
    output = Path(config.output_dir).absolute()
    start = Path(str(config.model.restore_from_path)).absolute()
    checkpoint = finished_checkpoint(config)
    exported = checkpoint is not None and is_exported(output / "hf", checkpoint)
    return {
        "output": str(output),
        "references": str(Path(config.reference_cache_dir or output / "reference").absolute()),
        "base": str(start) if (start / "config.json").is_file() else "",
        "checkpoint": str(checkpoint or ""),
        "exported": str(output / "hf") if exported else "",
    }


def main(arguments: list[str]) -> int:
    """Print the lines; returns the exit status."""
    stage, *overrides = arguments
    try:
        config = read_request("train", overrides, FLAGS).parse(TRAIN)
        lines = described(config)
        if stage == "plan":
            check_gpus(int(os.environ.get("SLURM_GPUS_ON_NODE") or 0))
        else:
            lines["prompts"] = str(prompts_of(config) or "")
    except UserError as error:
        print(f"{stage}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    for name, value in lines.items():
        print(f"{name} {value}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
