"""The configurations of `nemo-gdpo evaluate lm-eval`, `alpaca-eval`, `mt-bench`, `verbalised`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nemo_gdpo.config.base import PathText, Section, Text
from nemo_gdpo.config.generation import SampledModelConfig
from nemo_gdpo.config.root import Root

Count = Annotated[int, Field(ge=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Tasks = Annotated[tuple[Text, ...], Field(strict=False), BeforeValidator(_as_list)]


class PointConfig(Section):
    """One point of a sweep: what is given has to fit it, and no other."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    """Temperature of the point; null where the sweep has one."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """top_p of the point; null where the sweep has one."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """min_p of the point; null where the sweep has one."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """top_k of the point; null where the sweep has one."""


class LmEvalConfig(Section):
    """lm-eval on a Hugging Face directory, offline."""

    model: SampledModelConfig = Field(default_factory=SampledModelConfig)
    """As for `nemo-gdpo generate`."""
    name: Text | None = None
    """Name of the model in the report; null is the name of the directory above `hf`."""
    tasks: Tasks = ()
    """Names of lm-eval tasks or groups."""
    include_path: PathText | None = None
    """Directory with YAML files of your own tasks. lm-eval runs the Python that they name."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; null is the task's own number."""
    limit: Count | None = None
    """Documents of each task; null is all. A figure from a part is not the task's."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations."""
    device: Text = "auto"
    """cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    batch_size: Count = 8
    """Documents in one forward pass."""
    chat_template: bool = False
    """Put every prompt into the model's chat template, as chat models want it."""
    seed: Annotated[int, Field(ge=0)] = 1234
    """Seed of few-shot examples and of tasks that draw."""
    output_dir: PathText = "runs/evaluate"
    """Gets lm_eval/NAME.json; a report that is there takes it up."""


class AlpacaEvalConfig(Section):
    """AlpacaEval's file of model outputs."""

    generations: PathText | None = None
    """Directory of `nemo-gdpo generate`. Prompts must be one instruction each."""
    generator: Text | None = None
    """The model's name in AlpacaEval's leaderboard."""
    dataset: Text = "helpful_base"
    """Written to every row, unless its id is found in `instructions`."""
    instructions: PathText | None = None
    """AlpacaEval's own JSON of instructions: takes over its `dataset`s and its order, and every
    instruction of it must have been answered."""
    sampling: PointConfig = PointConfig()
    """Which point of a sweep; nothing where there is one."""
    sample: Annotated[int, Field(ge=0)] = 0
    """Which of the responses to a prompt."""
    output: PathText = "runs/alpaca_eval/model_outputs.json"
    """File to write."""


class MtBenchConfig(Section):
    """MT-Bench's two turns and its answer file."""

    step: Literal["first", "second", "answers"] = "first"
    """`first` and `second` write the prompts of a turn, `answers` the answer file."""
    questions: PathText | None = None
    """FastChat's question.jsonl."""
    first: PathText | None = None
    """Directory with the generations of the first turn."""
    second: PathText | None = None
    """Directory with the generations of the second turn."""
    model_id: Text | None = None
    """The model's name; FastChat takes it from the file's name, so the file is MODEL_ID.jsonl."""
    sampling: PointConfig = PointConfig()
    """Which point of a sweep; nothing where there is one."""
    sample: Annotated[int, Field(ge=0)] = 0
    """Which of the responses becomes the conversation."""
    output_dir: PathText = "runs/mt_bench"
    """Gets first.jsonl, second.jsonl and model_answer/MODEL_ID.jsonl."""


class VerbalisedConfig(Section):
    """Verbalised sampling (arXiv 2510.01171): a model is asked for several answers at once."""

    step: Literal["prompts", "answers"] = "prompts"
    """`prompts` writes the prompts that ask for several answers, `answers` what was answered."""
    prompts: PathText | None = None
    """JSONL with `id` and `prompt`, as for `nemo-gdpo generate`."""
    text_prompts: Literal["text", "user"] = "text"
    """As data.text_prompts of the runs to compare with."""
    answers: Annotated[int, Field(ge=2)] = 5
    """Answers that a prompt asks for."""
    generations: PathText | None = None
    """What `nemo-gdpo generate` wrote for those prompts, for `answers`."""
    responses: Count | None = None
    """Answers that are kept of a prompt, the first ones; null is as many as a prompt asks for.
    A prompt with fewer is left out."""
    output_dir: PathText = "runs/verbalised"
    """Gets verbalised.jsonl, the prompts, or generations-00000.jsonl, the answers."""


LM_EVAL = Root("lm_eval", LmEvalConfig)
ALPACA_EVAL = Root("alpaca_eval", AlpacaEvalConfig)
MT_BENCH = Root("mt_bench", MtBenchConfig)
VERBALISED = Root("verbalised", VerbalisedConfig)
