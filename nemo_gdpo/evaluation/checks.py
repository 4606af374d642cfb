"""Checks of the settings of an evaluation, before anything heavy is begun."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

from nemo_gdpo.config.evaluation import EvaluateConfig, EvaluationConfig
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.evaluation.metrics.encoder import PACKAGES
from nemo_gdpo.evaluation.models import directory_problems

REFERENCE = "reference"
"""Name of the data set's responses, so no run can have it."""


def problems(config: EvaluateConfig) -> list[Problem]:
    """Problems that the settings and the presence of files show."""
    evaluation = config.evaluation
    found = _runs(evaluation) + _models(evaluation) + _novelty(evaluation) + _judge(evaluation)
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        found.append(Problem("output_dir", f"{output} is a file", "choose a directory"))
    return found


def _runs(evaluation: EvaluationConfig) -> list[Problem]:
    found = []
    if not evaluation.runs:
        remedy = "set evaluation.runs={NAME: DIRECTORY, ...} of nemo-gdpo generate"
        found.append(Problem("evaluation.runs", "is not set", remedy))
    if REFERENCE in evaluation.runs:
        reason = "reference is the name of the data set's responses"
        found.append(Problem("evaluation.runs", reason, "choose another name"))
    if evaluation.length_tolerance is not None and len(evaluation.runs) == 1:
        reason = "is set, and there is one run only, which has no other to be matched with"
        found.append(Problem("evaluation.length_tolerance", reason, "give another run"))
    sections: dict[str, Collection[str]] = {
        "models": evaluation.models,
        "training": evaluation.training,
        "facts": evaluation.facts,
    }
    for section, names in sections.items():
        for name in names:
            if name not in evaluation.runs:
                runs = ", ".join(evaluation.runs) or "none"
                reason = f"no run has that name (the runs are {runs})"
                found.append(Problem(f"evaluation.{section}.{name}", reason, "correct the name"))
    return found


def _models(evaluation: EvaluationConfig) -> list[Problem]:
    found = []
    if evaluation.reference_model is not None:
        found += directory_problems("evaluation.reference_model", evaluation.reference_model)
    elif evaluation.models:
        reason = "are given for the KL to a reference, and evaluation.reference_model is not"
        found.append(Problem("evaluation.models", reason, "set it, or leave models out"))
    for name, path in evaluation.models.items():
        found += directory_problems(f"evaluation.models.{name}", path)
    if evaluation.encoder is not None and evaluation.encoder not in PACKAGES:
        found += directory_problems("evaluation.encoder", evaluation.encoder)
    for index, reward in enumerate(evaluation.rewards):
        if reward.path is not None:
            found += directory_problems(f"evaluation.rewards.{index}.path", reward.path)
    safety = evaluation.safety
    for name, model in (("toxicity", safety.toxicity), ("entailment", safety.entailment)):
        if model is not None:
            found += directory_problems(f"evaluation.safety.{name}", model)
    titles = [reward.title for reward in evaluation.rewards]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        reason = f"two of them are called {title}"
        found.append(Problem("evaluation.rewards", reason, "give each its own name"))
    for title, model in (("toxicity", safety.toxicity), ("contradiction", safety.entailment)):
        if model is not None and title in titles:
            reason = f"one of them is called {title}, as what evaluation.safety measures"
            found.append(Problem("evaluation.rewards", reason, "give it another name"))
    return found


def _novelty(evaluation: EvaluationConfig) -> list[Problem]:
    found, novelty = [], evaluation.novelty
    key = "evaluation.novelty"
    if novelty.equivalence == "classifier":
        if novelty.classifier is None:
            reason = "is not set, and equivalence=classifier needs it"
            found.append(Problem(f"{key}.classifier", reason, "give its directory"))
        else:
            found += directory_problems(f"{key}.classifier", novelty.classifier)
    elif novelty.classifier is not None:
        reason = "is set, and equivalence=cosine does not use it"
        found.append(Problem(f"{key}.classifier", reason, "set equivalence=classifier"))
    if novelty.utility_reward is not None:
        titles = [reward.title for reward in evaluation.rewards]
        if novelty.utility_reward not in titles:
            reason = f"{novelty.utility_reward} is not one of the rewards ({', '.join(titles)})"
            found.append(Problem(f"{key}.utility_reward", reason, "correct the name"))
        if novelty.equivalence == "cosine" and evaluation.encoder is None:
            reason = "needs classes of responses, and evaluation.encoder is null"
            found.append(Problem(f"{key}.utility_reward", reason, "set the encoder"))
    rising = all(a < b for a, b in itertools.pairwise(novelty.utility_thresholds))
    if len(novelty.utility_thresholds) != 9 or not rising:
        reason = "are not nine rising numbers"
        found.append(Problem(f"{key}.utility_thresholds", reason, "give nine, smallest first"))
    return found


def _judge(evaluation: EvaluationConfig) -> list[Problem]:
    found, judge = [], evaluation.judge
    key = "evaluation.judge"
    references = evaluation.references_path
    if judge.url is None:
        if references is not None:
            reason = "is set, and no judge is configured to compare with the references"
            found.append(Problem("evaluation.references_path", reason, f"set {key}.url"))
        return found
    if judge.model is None:
        found.append(Problem(f"{key}.model", "is not set", "name the judge's model"))
    if judge.against == REFERENCE:
        if references is None:
            reason = "is not set, and the judge compares with the data set's responses"
            remedy = f"give a JSONL file, or set {key}.against to a run"
            found.append(Problem("evaluation.references_path", reason, remedy))
        elif not Path(references).is_file():
            reason = f"{references} is not a file"
            found.append(Problem("evaluation.references_path", reason, "correct the path"))
        return found
    if judge.against not in evaluation.runs:
        runs = ", ".join(evaluation.runs) or "none"
        reason = f"{judge.against} is neither reference nor a run (the runs are {runs})"
        found.append(Problem(f"{key}.against", reason, "correct the name"))
    elif len(evaluation.runs) == 1:
        reason = "the run would be compared with itself"
        found.append(Problem(f"{key}.against", reason, "give another run, or set reference"))
    if references is not None:
        reason = f"is set, and the judge compares with {judge.against}"
        found.append(Problem("evaluation.references_path", reason, f"set {key}.against=reference"))
    return found
