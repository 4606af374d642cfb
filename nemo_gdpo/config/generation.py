"""The configuration of `nemo-gdpo generate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from nemo_gdpo.config.base import Day, PathText, Section, Text, Written, from_environment
from nemo_gdpo.config.constraints import ConstraintsConfig
from nemo_gdpo.config.places import ModelPath
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.suggest import GENERATION_ALIASES

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Real = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("give one value at least")
    return value


# A value alone is a sweep of one. YAML has lists only; the numbers themselves stay strict.
_SWEEP = (Field(strict=False), BeforeValidator(_as_list), AfterValidator(_not_empty))
Temperatures = Annotated[tuple[Real, ...], *_SWEEP]
TopPs = Annotated[tuple[Share, ...], *_SWEEP]
MinPs = Annotated[tuple[Annotated[float, Field(ge=0, le=1, strict=True)], ...], *_SWEEP]
TopKs = Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], *_SWEEP]
Stops = Annotated[tuple[Written, ...], Field(strict=False), BeforeValidator(_as_list)]


class SampledModelConfig(Section):
    """The model to sample from."""

    restore_from_path: ModelPath | None = from_environment("NEMO_GDPO_MODEL")
    """A Hugging Face directory: what training wrote to output_dir/hf, or any other. A run's
    output_dir stands for its hf, a name of the hub for its snapshot in this machine's cache."""
    adapter_path: PathText | None = None
    """An adapter of that model in PEFT's format, which vLLM adds as it runs: what training wrote to
    output_dir/peft, say. With backend=vllm only."""


class PromptsConfig(Section):
    """The `data` section of `generate`: the prompts to sample for."""

    prompts_path: PathText | None = None
    """JSONL with `id` and `prompt` (text, or a list of messages) on each line."""
    text_prompts: Literal["text", "user"] = "text"
    """How a prompt that is text is given to the model: as it is, without a template; or as what a
    user says, in the model's chat template, as NoveltyBench does."""
    chat_template: PathText | None = None
    """Path to a Jinja file that replaces the tokenizer's own template; as in training."""
    date: Day | None = None
    """Day that a template with a clock writes (Llama 3's date), as 2026-01-31; null takes that of
    the samples which are there already, or today."""


class ServerConfig(Section):
    """An OpenAI-compatible server, for `backend=server`."""

    url: Text | None = None
    """Base URL, up to and with /v1: http://host:8000/v1."""
    model: Text | None = None
    """The model's name there; null takes the one that the server says lies at the model's path."""
    key_variable: Text | None = None
    """Name of the environment variable that holds the key; null sends none."""
    concurrency: Count = 32
    """Requests under way at once."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Seconds that one answer may take."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Attempts after the first, when the server is busy or does not answer."""


class RayConfig(Section):
    """Several engines on one or many nodes, for `backend=ray`."""

    address: Text | None = None
    """Address of a running Ray cluster (auto, or host:port); null starts one on this machine."""
    replicas: Count = 1
    """Engines; each takes tensor_parallel_size GPUs."""
    batch_size: Count = 64
    """Rows that are handed to an engine at once, at least; more while many are left."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Times that a row is handed out again after its engine was lost, and that an engine which is
    lost before it is up is started again."""
    startup_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800.0
    """Seconds in which one engine at least has to be up."""
    nodes: Count = 1
    """Nodes that the cluster at `address` has to have before the run begins."""
    join_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds to wait for that cluster and those nodes."""


class GenerationConfig(Section):
    """A list of temperatures, top_p, min_p or top_k is a sweep: every combination is sampled."""

    num_samples: Count = 8
    """Answers to each prompt at each point of the sweep."""
    temperature: Temperatures = (1.0,)
    """0 takes the likeliest token."""
    top_p: TopPs = (1.0,)
    """Sample from the smallest set of tokens that holds this probability."""
    min_p: MinPs = (0.0,)
    """Sample from tokens with this share of the likeliest one's probability."""
    top_k: TopKs = (0,)
    """Sample from this many tokens; 0 is all."""
    max_tokens: Count = 256
    """Greatest length of an answer in tokens."""
    stop: Stops = ()
    """Texts that end an answer, beside the model's own end tokens; "\\n" is a new line. A special
    token of the tokenizer (<|im_end|>) ends it as a token."""
    seed: Annotated[int, Field(ge=0)] = 1234
    """Every sample's own seed is derived from this, its prompt, its sweep point and its number."""
    logprobs: Literal["none", "cumulative", "tokens"] = "none"
    """Keep the log-probability of each answer, or of each of its tokens as well."""
    backend: Literal["vllm", "ray", "server"] = "vllm"
    """vLLM in one process, vLLM on many GPUs with Ray, or a server."""
    python: PathText | None = None
    """Interpreter of the generation environment; null is NEMO_GDPO_GENERATION_PYTHON, or what
    `make python-generation` makes."""
    dtype: Literal["stored", "fp32", "bf16", "fp16"] = "stored"
    """Type of weights and activations; stored is the type that the weights are stored in."""
    tensor_parallel_size: Count = 1
    """GPUs that share one copy of the model."""
    max_model_len: Count | None = None
    """Greatest length of prompt and answer together; null is the model's own."""
    memory_utilization: Share | None = None
    """Share of a GPU's memory (on a CPU: of RAM) for the engine; null is 0.9 (on a CPU: 0.3)."""
    kv_cache_gib: Annotated[int, Field(ge=1)] | None = None
    """CPU only: GiB of the key-value cache; null is 1."""
    max_num_seqs: Count = 128
    """Answers that are decoded in one step."""
    in_flight: Count = 512
    """Answers that the engine holds at once; a signal lets it finish these."""
    enforce_eager: bool = False
    """Run without compilation and CUDA graphs on GPUs; a CPU always does."""
    rows_per_shard: Count = 10_000
    """Rows in one generations-*.jsonl."""
    server: ServerConfig = ServerConfig()
    ray: RayConfig = RayConfig()


class GenerateConfig(Section):
    """Everything that `nemo-gdpo generate` reads."""

    output_dir: PathText = "runs/generate"
    """Gets generations-*.jsonl, manifest.json and skipped.jsonl."""
    model: SampledModelConfig = Field(default_factory=SampledModelConfig)
    data: PromptsConfig = PromptsConfig()
    generation: GenerationConfig = GenerationConfig()
    constraints: ConstraintsConfig = ConstraintsConfig()


GENERATE = Root(
    "generate",
    GenerateConfig,
    groups={"generation": "default", "constraints": "none"},
    aliases=GENERATION_ALIASES,
)
