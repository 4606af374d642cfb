"""Export a finished run to Hugging Face, with a model card that says how it was made."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_gdpo import __version__
from nemo_gdpo.config.hub import may_be_hub_name
from nemo_gdpo.config.objective import plain_settings
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.conversion.adapters import AdapterSpec
from nemo_gdpo.conversion.convert import convert_megatron_to_hf
from nemo_gdpo.conversion.formats.adapter_checkpoint import AdapterRecord, write_adapter_record
from nemo_gdpo.conversion.formats.assets import base_licence
from nemo_gdpo.conversion.formats.card import HUB_DATA, write_card
from nemo_gdpo.conversion.merge import export_merged, export_peft
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.from_config import SplitName
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.objectives import OBJECTIVES
from nemo_gdpo.precisions import described
from nemo_gdpo.training.loggers import METRICS
from nemo_gdpo.training.summary import VALIDATION, last_step, validations

if TYPE_CHECKING:
    from nemo_gdpo.training.run import Run

STOPPED = (
    "stopped by {signal}; all {steps} steps are done and their checkpoint is written, what is "
    "missing is an export, and the same command makes it"
)
"""Said of a signal during an export."""


def _logged(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with a validation, and the last one."""
    path = output_dir / METRICS
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines[:-1] if f'"{VALIDATION}' in line] + [
        json.loads(line) for line in lines[-1:]
    ]


def _data_of(config: RunConfig, name: SplitName, data: PreferenceDataset) -> dict[str, Any]:
    """A data section. A path is told by its last part: the rest is somebody's machine."""
    path = str(config.data.path_of(name))
    stats = data.stats
    on_hub = {HUB_DATA: path} if may_be_hub_name(path) else {}
    return {
        "name": path if on_hub else Path(path).name,
        **on_hub,
        "format": config.data.preset or config.data.format,
        "fingerprint": data.fingerprint,
        "pairs": len(data),
        "prompt_tokens": stats.prompt_tokens,
        "response_tokens": stats.response_tokens,
        "prompts_cut": stats.prompts_cut,
        "responses_cut": stats.responses_cut,
    }


def _template_of(config: RunConfig, data: PreferenceDataset) -> str:
    digest = data.settings.get("chat_template")
    if digest is None:
        return "none, plain text"
    given = config.data.chat_template
    whose = "the tokenizer's own" if given is None else Path(given).name
    return f"{whose}, SHA-256 {digest}"


def _training_of(run: Run, last: dict[str, Any]) -> dict[str, Any]:
    """Settings that the weights depend on, and how far it came."""
    config, data = run.config, run.data["train"]
    optim, schedule = config.optim, config.optim.sched
    queries = last.get(f"{config.objective.name}/queries_total")
    return {
        "steps": f"{last['step'] + 1 if last else 0} of {run.identity.get('total_steps')}",
        "epochs": last.get("epoch", 0.0),
        "pairs_seen": last.get("consumed_pairs", 0),
        "tokens_seen": last.get("num_tokens", 0),
        **({} if queries is None else {"label_queries": queries}),
        "global_batch_size": config.model.global_batch_size,
        "micro_batch_size": config.model.micro_batch_size,
        "learning_rate": optim.lr,
        "schedule": schedule.name,
        "warmup_steps": schedule.warmup_steps,
        "min_learning_rate": schedule.min_lr,
        "optimizer": f"{optim.name}, betas {list(optim.betas)}, eps {optim.eps:g}, "
        f"weight decay {optim.weight_decay:g}",
        "gradient_clip_val": config.trainer.gradient_clip_val,
        "seed": config.seed,
        "data_seed": config.data.seed,
        "max_length": config.data.max_length,
        "max_prompt_length": config.data.max_prompt_length,
        "truncation": config.data.truncation_mode,
        "packing": config.data.packing,
        "chat_template": _template_of(config, data),
        "reference": config.reference,
        **_adapter_of(config),
    }


def _adapter_of(config: RunConfig) -> dict[str, Any]:
    """What is trained, where it is not all weights."""
    lora = config.lora
    if lora.rank is None:
        return {}
    said = f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"
    if lora.base_precision != "run":
        said += f", trained over the base in {lora.base_precision}"
    path = lora.restore_from_path
    return {"lora": said} | ({} if path is None else {"lora_start": Path(path).name})


def model_card_of(run: Run) -> dict[str, Any]:
    """The model card of this run's export, up to the last step that was logged."""
    config, layout = run.config, run.mesh.layout
    objective = OBJECTIVES[config.objective.name]
    lines = _logged(run.output_dir)
    last, validated = last_step(lines), validations(lines) or {}
    held_out = run.data.get("validation")
    return {
        "base_model": run.source.name,
        "licence": base_licence(run.source.assets),
        "objective": {"method": objective.method} | plain_settings(config.objective),
        "data": _data_of(config, "train", run.data["train"]),
        "validation_data": held_out and _data_of(config, "validation", held_out),
        "training": _training_of(run, last),
        "layout": f"TP{layout.tensor} PP{layout.pipeline} CP{layout.context} "
        f"DP{run.mesh.data_size}",
        "precision": described(config.precision),
        # The distribution's version of torch leaves out which build it is: 2.13.0+cu130.
        "versions": {"nemo_gdpo": __version__, "torch": str(torch.__version__)}
        | _installed("megatron-core", "transformer-engine", "nemo-toolkit", "transformers"),
        # How many updates it took stands above; a line's own number is one less.
        "metrics": {name: value for name, value in last.items() if name != "step"},
        "best_validation": validated.get("best"),
        "last_validation": validated.get("last"),
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
    spec = AdapterSpec.of(run.config.lora)
    if spec is not None:
        record = AdapterRecord(spec, run.source.fingerprint, run.source.name)
        write_adapter_record(checkpoint, record)


def export_run(run: Run, checkpoint: Path) -> Path:
    """Write `output_dir/hf` from a checkpoint, on one rank, streaming; adapters are merged.

    Raises:
        RunError: the disk failed; the run itself is complete.
    """
    target, card = run.output_dir / "hf", model_card_of(run)
    with _disk_failed():
        if run.config.lora.rank is None:
            convert_megatron_to_hf(checkpoint, target, card=card, progress=True)
        else:
            base = run.source.directory
            export_merged(checkpoint, base, target, card=card, progress=True)
    return target


def export_adapter(run: Run, checkpoint: Path) -> Path:
    """Write `output_dir/peft` from a checkpoint, on one rank.

    Raises:
        RunError: the disk failed; the run itself is complete.
    """
    target = run.output_dir / "peft"
    with _disk_failed():
        export_peft(checkpoint, target)
    return target


@contextlib.contextmanager
def _disk_failed() -> Iterator[None]:
    """A disk that fails in the block ends the run as what it is.

    Raises:
        RunError: see above.
    """
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise RunError(str(error)) from error  # nothing that was configured is wrong
