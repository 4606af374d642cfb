"""lm-eval on an exported model, offline, through its Python interface.

What the harness says is kept as it is in `output_dir/lm_eval/NAME.json`; the report shows every
file it finds there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.config.downstream import LmEvalConfig
from nemo_gdpo.config.problem import Problem, raise_problems
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_output

FOLDER = "lm_eval"
MODEL = "model.restore_from_path"
KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "configs")
"""Sections of the harness's answer that are kept; the others hold paths, times and environment."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def problems(config: LmEvalConfig) -> list[Problem]:
    """Everything that can be told to be wrong before the harness is imported."""
    found = []
    path = config.model.restore_from_path
    if path is None:
        found.append(Problem(MODEL, "is not set", "give the directory of a Hugging Face model"))
    elif not (Path(path) / "config.json").is_file():
        remedy = "give the directory of a Hugging Face model; convert a Megatron checkpoint first"
        found.append(Problem(MODEL, f"{path} has no config.json", remedy))
    if not config.tasks:
        found.append(Problem("tasks", "is empty", "name a task: tasks=film_sentiment"))
    if config.include_path is not None and not Path(config.include_path).is_dir():
        reason = f"{config.include_path} is not a directory"
        found.append(Problem("include_path", reason, "give the directory with the tasks' YAML"))
    if config.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            reason = f"{config.device}: this machine has no CUDA device"
            found.append(Problem("device", reason, "set device=cpu or auto"))
    return found


def model_name(config: LmEvalConfig) -> str:
    """Name of the model in the report: `gdpo` for runs/gdpo/hf."""
    if config.name is not None:
        return config.name
    assert config.model.restore_from_path is not None
    path = Path(config.model.restore_from_path).resolve()
    if path.parent.name == "snapshots":  # of the hub's cache: models--owner--name/snapshots/commit
        return path.parent.parent.name.rpartition("--")[2]
    return path.parent.name if path.name == "hf" else path.name


def run_lm_eval(config: LmEvalConfig) -> Path:
    """Evaluate one model; returns the path of what was kept.

    Raises:
        UserError: the settings are wrong, a task is unknown, its data are not here, or the output
            cannot be written.
    """
    raise_problems(problems(config))
    assert config.model.restore_from_path is not None
    # Set before `datasets` and `huggingface_hub` are imported, which read them once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from lm_eval import __version__ as version
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    manager = _manager(config)
    model = HFLM(
        pretrained=config.model.restore_from_path,
        backend="causal",
        dtype=_DTYPES[config.dtype],
        device=device,
        batch_size=config.batch_size,
        trust_remote_code=False,
    )
    try:
        answer = simple_evaluate(
            model=model,
            tasks=list(config.tasks),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            log_samples=False,
            apply_chat_template=config.chat_template,
            task_manager=manager,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            confirm_run_unsafe_code=False,
        )
    except (FileNotFoundError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tasks: the data of {', '.join(config.tasks)} are not on this machine ({reason}); "
            "nothing is downloaded here: fill the cache of `datasets` first, or use a task with "
            "dataset_path: json"
        ) from None
    assert answer is not None, "only the first rank of several gets None, and this is one process"
    kept = {
        "schema": 1,
        "name": model_name(config),
        "lm_eval": version,
        "settings": {**config.model_dump(mode="json"), "device": device},
        **{section: _plain(answer[section]) for section in KEPT if section in answer},
    }
    path = Path(config.output_dir) / FOLDER / f"{_file_name(kept['name'])}.json"
    text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_output(path, text)


def _manager(config: LmEvalConfig) -> Any:
    """The tasks: those of `include_path` if they are all there (lm-eval's own take long to list).

    Raises:
        UserError: a task is in neither place.
    """
    from lm_eval.tasks import TaskManager

    if config.include_path is not None:
        own = TaskManager(include_path=config.include_path, include_defaults=False)
        if set(config.tasks) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=config.include_path)
    unknown = [task for task in config.tasks if task not in manager.all_tasks]
    if unknown:
        where = f" and in {config.include_path}" if config.include_path else ""
        raise UserError(
            f"tasks: {', '.join(unknown)} not among lm-eval's tasks{where}; correct the name, or "
            "give include_path"
        )
    return manager


def _file_name(name: str) -> str:
    if "/" in name or name.startswith("."):
        raise UserError(f"name: {name!r} cannot be a file's name; choose another")
    return name


def _plain(value: Any) -> Any:
    """The harness's answer as JSON: functions by name, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def lm_eval_rows(answers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Model, task, metric, value and standard error of every figure."""
    rows = []
    for answer in answers:
        for task, figures in answer["results"].items():
            for key, value in figures.items():
                metric, _, which = key.partition(",")
                if which == "" or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = figures.get(f"{metric}_stderr,{which}")
                shots = answer.get("n-shot", {}).get(task, "")
                limit = answer["settings"]["limit"]
                rows.append(
                    [
                        str(answer["name"]),
                        str(task),
                        metric if which == "none" else f"{metric} ({which})",
                        f"{value:z.4f}",
                        f"{error:z.4f}" if isinstance(error, int | float) else "",
                        str(shots),
                        "all" if limit is None else f"first {limit}",
                    ]
                )
    return rows


def read_answers(output_dir: Path) -> list[dict[str, Any]]:
    """Answers that earlier runs kept in this directory, by name.

    Raises:
        UserError: a file is not what this module writes.
    """
    answers = []
    for path in sorted((output_dir / FOLDER).glob("*.json")):
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it") from None
        if not isinstance(plain, dict) or plain.get("schema") != 1 or "results" not in plain:
            raise UserError(f"{path}: not written by nemo-gdpo evaluate lm-eval; remove it")
        answers.append(plain)
    return answers
