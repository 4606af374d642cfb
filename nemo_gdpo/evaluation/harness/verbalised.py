"""Verbalised sampling (Zhang et al. 2025, arXiv 2510.01171): a baseline without training.

A model that is asked for one answer gives its typical one; asked for several with their
probabilities, it tells of a distribution. The prompts that ask so are written here,
`nemo-gdpo generate` answers them, and what it wrote is taken apart into rows like any other run's:
evaluated beside the others, on the original prompts.

An output counts when it holds exactly the answers that were asked for, each of them whole.
Anything else is malformed: counted by its fault and left out, never mended.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_gdpo.config.downstream import VerbalisedConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.rows import VERBALISED, Generations, read_run
from nemo_gdpo.generation.manifest import FORMAT, MANIFEST
from nemo_gdpo.generation.prompts import read_prompts
from nemo_gdpo.generation.rows import Row, StoredPrompt
from nemo_gdpo.generation.store import shards
from nemo_gdpo.io.files import write_output

PROMPTS, ANSWERS, SUMMARY = "verbalised.jsonl", "generations-00000.jsonl", "verbalised.json"
_ASK = (
    "Give {count} different responses to the request below, drawn at random from the full "
    "distribution of your possible responses. Put each one into <response> tags, with its wording "
    "in <text> and its probability, a number from 0 to 1, in <probability>:\n"
    "<response><text>...</text><probability>...</probability></response>\n"
    "Write nothing else.\n\n"
)
_BLOCK = re.compile(r"<response>(.*?)</response>", re.DOTALL)
_PARTS = re.compile(
    r"\s*<text>(.*)</text>\s*<probability>\s*([0-9.eE+-]+)\s*</probability>\s*", re.DOTALL
)
_TAG = re.compile(r"</?(?:response|text|probability)>")

Fault = Literal["count", "form", "probability", "empty"]
"""Another number of answers; tags that do not fit; no number from 0 to 1; an answer of no text."""


@dataclass(frozen=True)
class Answer:
    """One of the answers in an output."""

    text: str
    probability: float
    """As the model says; those of an output need not sum to 1."""


def wrap(prompt: StoredPrompt, count: int) -> StoredPrompt:
    """The prompt that asks for `count` answers with probabilities.

    The request goes before the text, or before what the user said last: some templates have no
    place for a system's message.

    Raises:
        UserError: the conversation does not end with the user.
    """
    ask = _ASK.format(count=count)
    if isinstance(prompt, str):
        return ask + prompt
    *earlier, last = prompt
    if last["role"] != "user":
        raise UserError(f"a conversation ends with the {last['role']}, not with the user")
    return [*earlier, {**last, "content": ask + last["content"]}]


def parse(output: str, count: int) -> list[Answer] | Fault:
    """The answers in one output, or why it is malformed; text outside of the answers is no fault.

    Args:
        output: of the model.
        count: of the answers that were asked for.
    """
    blocks = _BLOCK.findall(output)
    if len(blocks) != count or output.count("<response>") != count:
        return "count"
    found = []
    for block in blocks:
        parts = _PARTS.fullmatch(block)
        if parts is None or _TAG.search(parts[1]):
            return "form"
        text, probability = parts[1].strip(), _number(parts[2])
        if probability is None:
            return "probability"
        if not text:
            return "empty"
        found.append(Answer(text, probability))
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None


def verbalised(config: VerbalisedConfig) -> Path:
    """Do one step; returns the file that it wrote.

    Raises:
        UserError: a setting is missing, or the files do not fit together.
    """
    if config.prompts is None:
        raise UserError("prompts: is not set; give a JSONL file with id and prompt")
    as_user = config.text_prompts == "user"
    originals: dict[str, StoredPrompt] = {}
    wrapped: dict[str, StoredPrompt] = {}
    for given in read_prompts(Path(config.prompts), as_user=as_user):
        originals[given.id] = given.prompt
        try:
            wrapped[given.id] = wrap(given.prompt, config.answers)
        except UserError as error:
            raise UserError(f"{given.where}: {error}") from None
    output = Path(config.output_dir)
    if config.step == "prompts":
        rows = [{"id": key, "prompt": prompt} for key, prompt in wrapped.items()]
        return write_output(output / PROMPTS, _lines(rows))
    if config.generations is None:
        raise UserError("generations: is not set; give what nemo-gdpo generate wrote")
    if shards(output) and not (output / SUMMARY).is_file():
        raise UserError(f"output_dir: {output} holds other samples; choose another directory")
    run = read_run("generations", Path(config.generations))
    return _write_answers(run, originals, wrapped, config)


def _write_answers(
    run: Generations,
    originals: Mapping[str, StoredPrompt],
    wrapped: Mapping[str, StoredPrompt],
    config: VerbalisedConfig,
) -> Path:
    wanted = config.responses or config.answers
    faults: Counter[str] = Counter()
    rows, left_out, outputs = [], [], 0
    for row in (row for rows_of in run.points.values() for row in rows_of):
        if wrapped.get(row.id) != row.prompt:
            raise UserError(
                f"{row.where}: its prompt is not what step=prompts writes for {row.id!r}; give the "
                "same prompts, answers and text_prompts, or sample those prompts"
            )
        parsed = [parse(text, config.answers) for text in row.outputs]
        outputs += len(parsed)
        faults.update(one for one in parsed if isinstance(one, str))
        answers = [answer for one in parsed if not isinstance(one, str) for answer in one]
        if len(answers) < wanted:
            left_out.append({"id": row.id, "sampling": row.sampling.label(), "has": len(answers)})
            continue
        rows.append(_row(row, originals[row.id], answers[:wanted], run.model_hash))
    known = ", ".join(f"{name} {count}" for name, count in sorted(faults.items())) or "none"
    print(
        f"{outputs} outputs, {sum(faults.values())} of them malformed ({known}); {len(rows)} rows "
        f"of {wanted} answers, {len(left_out)} left out for having fewer"
    )
    if not rows:
        raise UserError(
            f"generations: no prompt has {wanted} answers ({outputs} outputs, malformed: {known}); "
            "sample more of them, raise max_tokens, or set responses"
        )
    output = Path(config.output_dir)
    summary = {
        "outputs": outputs,
        "malformed": dict(sorted(faults.items())),
        "rows": len(rows),
        "left_out": left_out,
    }
    write_output(output / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    settings = {**run.settings, VERBALISED: config.answers, "num_samples": wanted}
    manifest = {"format": FORMAT, "model": {"hash": run.model_hash}, "settings": settings}
    write_output(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return write_output(output / ANSWERS, _lines(rows))


def _row(
    row: Row, prompt: StoredPrompt, answers: Sequence[Answer], model_hash: str
) -> dict[str, Any]:
    """A row of generations; without tokens, which were those of the whole output."""
    return {
        "id": row.id,
        "prompt": prompt,
        "sampling": row.sampling.to_dict(),
        "outputs": [answer.text for answer in answers],
        "finish_reasons": ["stop"] * len(answers),
        "probabilities": [answer.probability for answer in answers],
        "model_hash": model_hash,
    }


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
