"""Export a finished run to Hugging Face, with a model card that says how it was made."""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_gdpo import __version__
from nemo_gdpo.config.objective import plain_settings
from nemo_gdpo.conversion.convert import convert_megatron_to_hf
from nemo_gdpo.conversion.formats.assets import base_licence
from nemo_gdpo.conversion.formats.card import write_card
from nemo_gdpo.errors import UserError
from nemo_gdpo.objectives import OBJECTIVES
from nemo_gdpo.training.metrics import TIMING

if TYPE_CHECKING:
    from nemo_gdpo.training.run import Run


def _last_metrics(output_dir: Path) -> dict[str, float]:
    path = output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines:
        return {}
    entry = json.loads(lines[-1])
    return {name: value for name, value in entry.items() if name not in TIMING}


def model_card_of(run: Run) -> dict[str, Any]:
    """The model card of this run's export, up to the last step that was logged."""
    config, layout, data = run.config, run.mesh.layout, run.data["train"]
    objective = OBJECTIVES[config.objective.name]
    return {
        "base_model": run.source.name,
        "licence": base_licence(run.source.assets),
        "objective": {"method": objective.method} | plain_settings(config.objective),
        "data": {
            "path": config.data.train_path,
            "fingerprint": data.fingerprint,
            "pairs": len(data),
        },
        "layout": f"TP{layout.tensor} PP{layout.pipeline} CP{layout.context} "
        f"DP{run.mesh.data_size}",
        "precision": config.precision,
        # The distribution's version of torch leaves out which build it is: 2.13.0+cu130.
        "versions": {"nemo_gdpo": __version__, "torch": str(torch.__version__)}
        | _installed("megatron-core", "nemo-toolkit"),
        "metrics": _last_metrics(run.output_dir),
        "citations": [objective.citation],
    }


def _installed(*packages: str) -> dict[str, str]:
    """Versions of what is there: NeMo may be missing where its classes are not used."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def trained_template(run: Run) -> str | None:
    """The template of `data.chat_template` as the pairs were tokenised with it; None without one.

    Raises:
        UserError: the file holds another one by now.
    """
    given = run.config.data.chat_template
    if given is None:
        return None
    try:
        text = Path(given).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template={given} cannot be read ({error})") from None
    digest = run.data["train"].settings.get("chat_template")
    if digest is not None and hashlib.sha256(text.encode()).hexdigest() != digest:
        raise UserError(
            f"data.chat_template={given} is not what the pairs were tokenised with; restore the "
            "file, so that what was trained with is what is exported"
        )
    return text


def write_assets(run: Run, chat_template: str | None, checkpoint: Path) -> None:
    """Put what an export needs, and what its card says, beside a training checkpoint.

    Args:
        run: whose checkpoint it is.
        chat_template: see `trained_template`.
        checkpoint: its directory.
    """
    run.source.write_assets(checkpoint, chat_template=chat_template)
    write_card(checkpoint, model_card_of(run))


def export_run(run: Run, checkpoint: Path) -> Path:
    """Write `output_dir/hf` from a checkpoint, on one rank, streaming."""
    target = run.output_dir / "hf"
    convert_megatron_to_hf(checkpoint, target, card=model_card_of(run), progress=True)
    return target
