"""The table of verbs: what each is for, what it reads, and who carries it out.

Modules are named as text and imported when their verb is called, so that listing the verbs, or
checking a configuration, loads neither torch nor megatron.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_gdpo.config.request import CONFIG_FLAGS, Request
from nemo_gdpo.config.root import Root
from nemo_gdpo.importing import uncollected
from nemo_gdpo.launch.signals import BEFORE_TRAINING


@dataclass(frozen=True)
class Verb:
    """One verb, or what may follow one (`evaluate lm-eval`)."""

    name: str
    summary: str
    """Half a line for the list of verbs."""
    usage: str
    """Beginning of its help."""
    runs: str
    """`module:function`; takes a `Request`, or the arguments themselves where `reads` is None."""
    reads: str | None
    """`module:ROOT` of its configuration; None: it parses its arguments itself."""
    flags: tuple[str, ...] = CONFIG_FLAGS
    followers: tuple[Verb, ...] = ()
    stopped: str | None = None
    """What is told when `{signal}` ends it before it says something better itself; None: that the
    same command starts again."""

    def root(self) -> Root[Any] | None:
        """The configuration that it reads."""
        if self.reads is None:
            return None
        root = _imported(self.reads)
        assert isinstance(root, Root)
        return root

    def run(self, request: Request | list[str]) -> int:
        """Carry it out; returns the exit status."""
        function: Callable[[Request | list[str]], int] = _imported(self.runs)
        return function(request)


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    with uncollected():
        return vars(importlib.import_module(module))[name]


_TRAIN_ROOT = "nemo_gdpo.config.schema:TRAIN"

VERBS: tuple[Verb, ...] = (
    Verb(
        "validate",
        "name every problem of a configuration at once; needs no GPU",
        """\
usage: nemo-gdpo validate [group=preset] [key=value] ... [--config FILE] [--elsewhere]
         [--all-rows] [--cfg job [--resolve]]

Names every problem of a run at once; takes the same arguments as train. The first 1000 rows of the
data are read and tokenised, with --all-rows all of them. With --elsewhere the run is for another
machine: files and hardware of this one are not looked at.
""",
        "nemo_gdpo.verbs.validate:run",
        _TRAIN_ROOT,
        (*CONFIG_FLAGS, "--elsewhere", "--all-rows"),
    ),
    Verb(
        "plan",
        "predict memory, speed and hours on hardware that need not be here",
        """\
usage: nemo-gdpo plan hardware=DEVICExNUMBER [group=preset] [key=value] ... [--config FILE]
         [--json] [--cfg job [--resolve]]

Predicts what a rank needs, what fits, tokens/s, hours and disk, and ranks layouts for the hardware;
takes the same arguments as train. Lengths are those of data.train_path where it can be read here.
DEVICE: a100-40, a100-80, h100, h100-pcie, h100-nvl, h200, b200, b300, l40s. --json: JSON alone.

  nemo-gdpo plan experiment=gdpo_llama3_8b hardware=h100x16
""",
        "nemo_gdpo.verbs.plan:run",
        _TRAIN_ROOT,
        (*CONFIG_FLAGS, "--json"),
    ),
    Verb(
        "prepare",
        "read, check and tokenise pairs ahead of training",
        """\
usage: nemo-gdpo prepare data=... data.train_path=FILE model.restore_from_path=DIR output_dir=DIR
         [--config FILE] [--cfg job [--resolve]]

Reads, checks and tokenises; DIR/train and DIR/validation can then stand for the files.
""",
        "nemo_gdpo.data.cli:run",
        _TRAIN_ROOT,
        stopped="stopped by {signal}; a split that is complete is kept, and the same command goes "
        "on",
    ),
    Verb(
        "convert",
        "hf-to-megatron, megatron-to-hf, nemo-to-megatron, megatron-to-nemo, verify, cache",
        "",
        "nemo_gdpo.verbs.convert:run",
        None,
        stopped="stopped by {signal}; files that are finished are kept beside the destination, and "
        "the same command goes on from there",
    ),
    Verb(
        "reference",
        "compute the reference's log-probabilities ahead of training",
        """\
usage: nemo-gdpo reference [group=preset] [key=value] ... [--config FILE] [--cfg job [--resolve]]

Takes the arguments of train and makes the caches that the training run would make first.
""",
        "nemo_gdpo.verbs.start:reference",
        _TRAIN_ROOT,
        stopped=BEFORE_TRAINING,
    ),
    Verb(
        "train",
        "train; under torchrun or srun it joins their ranks, alone it starts its own",
        """\
usage: nemo-gdpo train [group=preset] [key=value] ... [--config FILE] [--cfg job [--resolve]]

--config FILE starts from a run's own config.yaml, or from any file of yours with some of the keys.
--cfg job prints the configuration instead of training; with --resolve, with the values
of interpolations. Names of keys follow NeMo's.
""",
        "nemo_gdpo.verbs.start:train",
        _TRAIN_ROOT,
        stopped=BEFORE_TRAINING,
    ),
    Verb(
        "generate",
        "sample from a model with vLLM, or from a server",
        """\
usage: nemo-gdpo generate model.restore_from_path=DIR data.prompts_path=FILE output_dir=DIR
         [generation=preset] [key=value] ... [--config FILE] [--cfg job [--resolve]]

Samples from a model with vLLM (or from a server), several answers to each prompt and at each point
of a sweep, each with its own seed. The same command again makes what is missing.
FILE is JSONL with id and prompt (text or messages). output_dir gets generations-*.jsonl.

  nemo-gdpo generate model.restore_from_path=runs/gdpo/hf data.prompts_path=prompts.jsonl \\
    generation.num_samples=8 generation.temperature=[0.7,1.0] output_dir=runs/samples

--cfg job prints the configuration instead; with --resolve, with the values of interpolations.
""",
        "nemo_gdpo.generation.cli:run",
        "nemo_gdpo.config.generation:GENERATE",
    ),
    Verb(
        "evaluate",
        "measure diversity and quality of what was sampled",
        """\
usage: nemo-gdpo evaluate evaluation.runs={NAME: DIR, ...} output_dir=DIR
         [evaluation=preset] [key=value] ... [--config FILE] [--cfg job [--resolve]]
       nemo-gdpo evaluate lm-eval|alpaca-eval|mt-bench|verbalised --help

Measures what `nemo-gdpo generate` wrote: diversity and quality, side by side, with intervals over
prompts. Prints a table, writes evaluation.json and the report into output_dir.

  nemo-gdpo evaluate 'evaluation.runs={base: runs/samples-base, gdpo: runs/samples-gdpo}' \\
    evaluation.reference_model=runs/base-hf 'evaluation.models={gdpo: runs/gdpo/hf}' \\
    output_dir=runs/evaluation

Stopped in the middle, the same command resumes where it was.
--cfg job prints the configuration instead; with --resolve, with the values of interpolations.
""",
        "nemo_gdpo.evaluation.cli:run",
        "nemo_gdpo.config.evaluation:EVALUATE",
        followers=(
            Verb(
                "lm-eval",
                "run lm-eval's tasks on an export",
                """\
usage: nemo-gdpo evaluate lm-eval model.restore_from_path=DIR tasks=[TASK, ...]
         [include_path=DIR] [key=value] ... [--config FILE] [--cfg job [--resolve]]

Runs lm-eval on a Hugging Face directory, offline. output_dir gets lm_eval/NAME.json; the report
shows what it finds there, and is written again where it exists.

  nemo-gdpo evaluate lm-eval model.restore_from_path=runs/gdpo/hf tasks=film_sentiment \\
    include_path=conf/lm_eval output_dir=runs/evaluation
""",
                "nemo_gdpo.evaluation.harness.cli:lm_eval",
                "nemo_gdpo.config.downstream:LM_EVAL",
            ),
            Verb(
                "alpaca-eval",
                "write AlpacaEval's file of model outputs",
                """\
usage: nemo-gdpo evaluate alpaca-eval generations=DIR generator=NAME output=FILE [key=value] ...

Writes the file that `alpaca_eval --model_outputs FILE` reads.
""",
                "nemo_gdpo.evaluation.harness.cli:alpaca_eval",
                "nemo_gdpo.config.downstream:ALPACA_EVAL",
            ),
            Verb(
                "mt-bench",
                "write MT-Bench's prompts and answer file",
                """\
usage: nemo-gdpo evaluate mt-bench step=first|second|answers questions=FILE [key=value] ...

  nemo-gdpo evaluate mt-bench step=first questions=question.jsonl output_dir=runs/mt
  nemo-gdpo generate data.prompts_path=runs/mt/first.jsonl output_dir=runs/mt/turn1 ...
  nemo-gdpo evaluate mt-bench step=second questions=question.jsonl first=runs/mt/turn1 \\
    output_dir=runs/mt
  nemo-gdpo generate data.prompts_path=runs/mt/second.jsonl output_dir=runs/mt/turn2 ...
  nemo-gdpo evaluate mt-bench step=answers questions=question.jsonl first=runs/mt/turn1 \\
    second=runs/mt/turn2 model_id=gdpo output_dir=runs/mt
""",
                "nemo_gdpo.evaluation.harness.cli:mt_bench",
                "nemo_gdpo.config.downstream:MT_BENCH",
            ),
            Verb(
                "verbalised",
                "ask for several answers with probabilities at once, and read them",
                """\
usage: nemo-gdpo evaluate verbalised step=prompts|answers prompts=FILE [key=value] ...

  nemo-gdpo evaluate verbalised step=prompts prompts=prompts.jsonl output_dir=runs/vs
  nemo-gdpo generate generation=verbalised data.prompts_path=runs/vs/verbalised.jsonl \\
    output_dir=runs/vs/asked ...
  nemo-gdpo evaluate verbalised step=answers prompts=prompts.jsonl generations=runs/vs/asked \\
    responses=8 output_dir=runs/vs/samples
  nemo-gdpo evaluate 'evaluation.runs={base: runs/samples, verbalised: runs/vs/samples}'
""",
                "nemo_gdpo.evaluation.harness.cli:verbalised",
                "nemo_gdpo.config.downstream:VERBALISED",
            ),
        ),
    ),
    Verb(
        "label",
        "ask people and judges about pairs, and keep their answers",
        "",
        "nemo_gdpo.verbs.label.usage:run",
        None,
        followers=(
            Verb(
                "margins",
                "compute the present model's margins of all pairs",
                """\
usage: nemo-gdpo label margins [group=preset] [key=value] ... [--config FILE]
         [--cfg job [--resolve]]

Takes the arguments of train, reads the newest checkpoint in output_dir (none: the model that
training starts from) and writes beta h of all training pairs to output_dir/margins/step_N.jsonl.

  nemo-gdpo label margins --config runs/adpo/config.yaml
""",
                "nemo_gdpo.verbs.start:margins",
                _TRAIN_ROOT,
                stopped=BEFORE_TRAINING,
            ),
            Verb(
                "select",
                "ask about pairs, within a budget",
                """\
usage: nemo-gdpo label select label.ledger=FILE data.train_path=FILE label.margins=FILE
         [key=value] ... [--config FILE] [--cfg job [--resolve]]

Notes in the ledger (made where it is missing) which pairs are asked about: those that the model is
least sure of, or with label.strategy=random as many by lot.

  nemo-gdpo label select label.ledger=labels.sqlite data.train_path=pairs.jsonl \\
    label.margins=runs/adpo/margins/step_00000040.jsonl label.count=200 label.budget=1000
""",
                "nemo_gdpo.verbs.label.select:run",
                "nemo_gdpo.config.labeling:SELECT",
            ),
            Verb(
                "export",
                "write, or send, tasks for annotators",
                """\
usage: nemo-gdpo label export label.ledger=FILE label.output=FILE|label.url=URL [key=value] ...

Writes the pairs without an answer as tasks for Label Studio, its labelling configuration beside
them (.xml), or as plain lines; with label.url it sends them to a server.

  nemo-gdpo label export label.ledger=labels.sqlite label.output=tasks.json
""",
                "nemo_gdpo.verbs.label.exchange:export",
                "nemo_gdpo.config.labeling:EXPORT",
            ),
            Verb(
                "import",
                "record the annotators' answers",
                """\
usage: nemo-gdpo label import label.ledger=FILE label.answers=FILE|label.url=URL [key=value] ...

Records what came back: Label Studio's JSON export, exported lines that were filled in, or with
label.url and label.project what a server has. A file is recorded completely or not at all.

  nemo-gdpo label import label.ledger=labels.sqlite label.answers=project-1.json
""",
                "nemo_gdpo.verbs.label.exchange:import_",
                "nemo_gdpo.config.labeling:IMPORT",
                stopped="stopped by {signal}; what was recorded is kept, and the same command "
                "goes on",
            ),
            Verb(
                "judge",
                "have a model behind a server answer",
                """\
usage: nemo-gdpo label judge label.ledger=FILE label.judge.url=URL label.judge.model=NAME
         [key=value] ... [--config FILE] [--cfg job [--resolve]]

Asks an OpenAI-compatible server about every pair in both orders; a preference for a place comes to
a tie. Stopped in the middle, the same command asks what is missing.
""",
                "nemo_gdpo.verbs.label.judge:run",
                "nemo_gdpo.config.labeling:JUDGE",
                stopped="stopped by {signal}; what was answered is kept, and the same command "
                "goes on",
            ),
            Verb(
                "status",
                "asked, answered, left, cost, agreement",
                """\
usage: nemo-gdpo label status label.ledger=FILE [label.cost={person: 0.5}] [--json]

Prints what was asked, answered and is left, the labels, what the answers cost, and how far
annotators agree. --json: JSON alone.
""",
                "nemo_gdpo.verbs.label.status:run",
                "nemo_gdpo.config.labeling:STATUS",
                (*CONFIG_FLAGS, "--json"),
            ),
        ),
    ),
    Verb(
        "pairs",
        "make preference pairs of what was sampled",
        """\
usage: nemo-gdpo pairs pairs.generations=DIR pairs.rewards=[KIND] output_dir=DIR
         [key=value] ... [--config FILE] [--cfg job [--resolve]]

Makes preference pairs of what `nemo-gdpo generate` wrote, by scores from a reward, a file or a
field of the rows: best against worst, DivPO, or as in REDIPO. output_dir gets pairs.jsonl, which
data.train_path takes, and stats.json, which counts the prompts without a pair and why.

  nemo-gdpo pairs pairs.generations=runs/samples pairs.method=divpo pairs.rewards=[vader] \\
    output_dir=runs/pairs
""",
        "nemo_gdpo.pairing.cli:run",
        "nemo_gdpo.config.pairs:PAIRS",
        stopped="stopped by {signal}; nothing was written but what models computed, and the same "
        "command goes on from there",
    ),
    Verb(
        "rounds",
        "sample, score, make pairs or groups, train, and again",
        """\
usage: nemo-gdpo rounds model.restore_from_path=DIR rounds.prompts_path=FILE output_dir=DIR
         [group=preset] [key=value] ... [--config FILE] [--cfg job [--resolve]]
       nemo-gdpo rounds next|score|groups --help

Each round samples answers (generate), scores them by constraints and a reward, makes pairs of them,
or groups for objective=gflownet, and trains on these. All keys of train mean what they mean there,
for every round. Each stage is a command with its configuration in output_dir/round_001/, ...
Stopped or killed at any place, the same command goes on.

  nemo-gdpo rounds objective=gflownet data.group_size=4 constraints.max_words=30 \\
    rounds.rewards=[vader] rounds.prompts_path=prompts.jsonl output_dir=runs/rounds \\
    model.restore_from_path=DIR trainer.max_steps=50
""",
        "nemo_gdpo.rounds.cli:run",
        "nemo_gdpo.config.rounds:ROUNDS",
        stopped="stopped by {signal}; what is complete is kept, and the same command goes on",
        followers=(
            Verb(
                "next",
                "print what can begin now, for a scheduler",
                """\
usage: nemo-gdpo rounds next [arguments of rounds]

Starts nothing: records the stages whose results are there, writes the configurations of those that
can begin, and prints a line for each: its name, its configuration, its verb. Without a line all
rounds are done.
""",
                "nemo_gdpo.rounds.cli:next_stages",
                "nemo_gdpo.config.rounds:ROUNDS",
            ),
            Verb(
                "score",
                "score samples by constraints and a reward",
                """\
usage: nemo-gdpo rounds score score.samples=DIR score.rewards=[KIND] output_dir=DIR [key=value] ...

Scores what `nemo-gdpo generate` wrote. output_dir gets answers.jsonl (answers of each prompt),
scores.jsonl (which pairs.scores_path takes) and metrics.json.
""",
                "nemo_gdpo.rounds.cli:score",
                "nemo_gdpo.config.rounds:SCORE",
            ),
            Verb(
                "groups",
                "make groups of scored answers",
                """\
usage: nemo-gdpo rounds groups groups.scored=[DIR, ...] groups.round=N groups.size=K output_dir=DIR
         [key=value] ...

Makes groups of K answers, new ones and replayed ones, of what `rounds score` wrote. output_dir gets
groups.jsonl, which data.format=groups takes, and stats.json.
""",
                "nemo_gdpo.rounds.cli:groups",
                "nemo_gdpo.config.rounds:GROUPS",
            ),
        ),
    ),
    Verb(
        "doctor",
        "what is installed here and what this machine can do",
        "",
        "nemo_gdpo.verbs.doctor:run",
        None,
    ),
)
