"""The sampling itself, in an environment that has the engine. `nemo-gdpo generate` starts it."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo import __version__
from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.generation import GENERATE, GenerateConfig
from nemo_gdpo.config.model_files import read_model_config
from nemo_gdpo.constraints import Constraints, Structure, constraints_of
from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, UserError
from nemo_gdpo.generation.backends import Backend, open_backend
from nemo_gdpo.generation.constrained import print_counts, verdict_columns, with_tokenizer_end
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.manifest import FORMAT
from nemo_gdpo.generation.model import ModelInfo, encoder, model_info
from nemo_gdpo.generation.prompts import EncodedPrompt, encode_each, read_prompts
from nemo_gdpo.generation.seeds import sample_seeds
from nemo_gdpo.generation.stops import Stops, split_stops
from nemo_gdpo.generation.store import SKIPPED, Store
from nemo_gdpo.generation.sweep import sampling_points
from nemo_gdpo.generation.types import Completed, NotMade, Request, SamplingPoint
from nemo_gdpo.importing import own_process
from nemo_gdpo.io.files import file_sha256, write_file
from nemo_gdpo.io.http import REFUSED_AT_FIRST, RefusedError
from nemo_gdpo.io.processes import end_with_parent
from nemo_gdpo.launch.failures import guarded
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest
from nemo_gdpo.progress import progress_bar

INTERRUPTED = "stopped by a signal before sampling began; the same command starts again"


def main(argv: Sequence[str]) -> int:
    """Sample as the configuration file `argv[0]` says; returns the exit status."""
    with StopRequest(ALL_SIGNALS, interrupts=INTERRUPTED, rank=0):
        return guarded(lambda: run(read_config(Path(argv[0]), GENERATE)))


def run(config: GenerateConfig) -> int:
    """Sample what is missing in `output_dir`; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong.
        GenerationError: disk, engine or server failed; what was written is intact.
        Stopped: a signal came before there was anything to finish.
    """
    with StopRequest(ALL_SIGNALS, interrupts=INTERRUPTED) as stop:
        try:
            return _run(config, stop)
        except GenerationError as error:
            if stop.received is None:
                raise
            # The signal may have reached the engine's own processes, too.
            print(f"nemo-gdpo: stopped by a signal ({error})", file=sys.stderr)
            return EXIT_REQUEUE


def _run(config: GenerateConfig, stop: StopRequest) -> int:
    assert config.data.prompts_path is not None
    directory = Path(config.output_dir)
    prompts_path = Path(config.data.prompts_path)
    constraints = constraints_of(config.constraints)
    encoding = encoder(config)
    read = read_prompts(prompts_path, as_user=config.data.text_prompts == "user")
    prompts, unusable = encode_each(read, encoding)
    stop_at = split_stops(config.generation.stop, encoding.special_tokens)
    refuse_unknown_tokens(config, [*stop_at.token_ids, *prompts[0].stop_token_ids])
    model = model_info(config)
    backend = open_backend(config, model)
    if stop_at.token_ids and not backend.takes_stop_tokens:
        raise UserError(
            f"generation.stop: {', '.join(map(repr, config.generation.stop))} holds a special "
            "token, and OpenAI's interface ends answers at texts only; leave it out, or use vLLM's "
            "server"
        )
    fitting, skipped = split_by_length(prompts, config.generation.max_tokens, backend.context)
    if not fitting:
        raise UserError(
            f"{prompts_path}: no prompt leaves room for generation.max_tokens="
            f"{config.generation.max_tokens} in {backend.context} tokens; lower max_tokens, or "
            "shorten the prompts"
        )
    stops = encoding.stop_token_ids
    manifest = build_manifest(
        config, model, backend, prompts_path, len(read), None if stops is None else sorted(stops)
    )
    manifest["settings"]["date"] = encoding.date
    if constraints is not None:
        manifest["settings"]["constraints"] = constraints.identity()
    with Store(directory, manifest, config.generation.rows_per_shard) as store:
        store.check_prompts(
            {p.given.id: p.given.prompt for p in prompts},
            {p.given.id: p.given.where for p in prompts},
        )
        if store.repaired:
            print(f"cut away {store.repaired} bytes of a row that was half written", flush=True)
        left_out = _LeftOut(directory)
        max_tokens, context = config.generation.max_tokens, backend.context
        left_out.add(
            [_too_long(prompt, max_tokens, context) for prompt in skipped],
            f"with max_tokens={max_tokens} they exceed the context of {context} tokens",
        )
        left_out.add([{"id": u.given.id, "reason": u.reason} for u in unusable])
        left_out.write()
        structure = None if constraints is None else constraints.structure
        if structure is not None:
            stop_at = with_tokenizer_end(stop_at, encoding)
        wanted = build_requests(config, fitting, stop_at, structure)
        points = {request.sampling: request for request in reversed(wanted)}
        backend.check(list(points.values()))
        missing = [r for r in wanted if key_of(r) not in store.done]
        print(
            f"{len(wanted)} rows ({len(fitting)} prompts x {len(wanted) // len(fitting)} sampling "
            f"points) of {config.generation.num_samples} answers; {len(wanted) - len(missing)} are "
            "there",
            flush=True,
        )
        not_made = _sample(missing, backend, model, store, stop, constraints) if missing else []
        left_out.add([_refusal(row) for row in not_made if row.is_refused])
        left_out.write()
        known = {key_of(row.request) for row in not_made}
        left = [r for r in missing if key_of(r) not in store.done and key_of(r) not in known]
        failed = [row for row in not_made if not row.is_refused]
        if not store.done and not_made and not left and not failed:
            raise UserError(f"no row could be made: prompt {_named(not_made[0])}")
    if constraints is not None:
        print_counts(directory, constraints)
    if left:
        if stop.received is None:
            raise GenerationError(f"the engine ended with {len(left)} rows missing; run it again")
        print(
            f"nemo-gdpo: stopped by a signal, {len(left)} rows are left; the same command makes "
            "them",
            file=sys.stderr,
        )
        return EXIT_REQUEUE
    if failed:
        raise GenerationError(
            f"{len(failed)} of {len(wanted)} rows were not made (prompt {_named(failed[0])}); the "
            f"others are in {directory}, and the same command tries again"
        )
    print(f"samples: {directory}")
    return EXIT_DONE


def key_of(request: Request) -> tuple[str, SamplingPoint]:
    """The key of a request's row in the store."""
    return request.id, request.sampling


def split_by_length(
    prompts: Sequence[EncodedPrompt], max_tokens: int, context: int
) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    """(prompts whose longest answer fits into the context, the others)."""
    fits = [len(p.token_ids) + max_tokens <= context for p in prompts]
    return (
        [p for p, fit in zip(prompts, fits, strict=True) if fit],
        [p for p, fit in zip(prompts, fits, strict=True) if not fit],
    )


class _LeftOut:
    """What the last run made no row of: `skipped.jsonl`, and a line on stderr."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / SKIPPED
        self._entries: list[dict[str, Any]] = []

    def add(self, entries: Sequence[dict[str, Any]], why: str | None = None) -> None:
        """Leave out what `entries` name, and tell why: by default, the first one's reason."""
        if not entries:
            return
        self._entries += entries
        ids = list(dict.fromkeys(repr(entry["id"]) for entry in entries))
        print(
            f"nemo-gdpo: {len(ids)} of the prompts are skipped ({', '.join(ids[:3])}"
            f"{' and others' if len(ids) > 3 else ''}): {why or entries[0]['reason']}; "
            f"{self._path} lists them",
            file=sys.stderr,
        )

    def write(self) -> None:
        """Write the file, or remove it when nothing is left out.

        Raises:
            GenerationError: the disk is full, or failed.
        """
        try:
            if not self._entries:
                self._path.unlink(missing_ok=True)
                return
            lines = [json.dumps(entry) for entry in self._entries]
            write_file(self._path, "\n".join(lines) + "\n")
        except OSError as error:
            raise GenerationError(f"{self._path} cannot be written ({error})") from error


def _too_long(prompt: EncodedPrompt, max_tokens: int, context: int) -> dict[str, Any]:
    return {
        "id": prompt.given.id,
        "reason": "prompt and max_tokens together exceed the context",
        "prompt_tokens": len(prompt.token_ids),
        "max_tokens": max_tokens,
        "context": context,
    }


def _named(row: NotMade) -> str:
    return f"{row.request.id!r} at {row.request.sampling.label()}: {row.reason}"


def _refusal(row: NotMade) -> dict[str, Any]:
    return {
        "id": row.request.id,
        "sampling": row.request.sampling.to_dict(),
        "reason": row.reason,
    }


def refuse_unknown_tokens(config: GenerateConfig, tokens: Sequence[int]) -> None:
    """Refuse end tokens that the model does not have, before it is loaded.

    Raises:
        UserError: naming the first.
    """
    assert config.model.restore_from_path is not None
    found = read_model_config(config.model.restore_from_path) or {}
    inner = found.get("text_config")
    size = found.get("vocab_size") or (inner.get("vocab_size") if isinstance(inner, dict) else None)
    beyond = [token for token in tokens if isinstance(size, int) and token >= size]
    if beyond:
        raise UserError(
            f"{config.model.restore_from_path}: token {beyond[0]} is to end answers, and the model "
            f"has {size} tokens; correct eos_token_id in generation_config.json, or "
            "generation.stop"
        )


def build_requests(
    config: GenerateConfig,
    prompts: Sequence[EncodedPrompt],
    stop_at: Stops,
    structure: Structure | None = None,
) -> list[Request]:
    """Every row of the run: prompts in the order of the file, for each the points of the sweep."""
    generation = config.generation
    return [
        Request(
            id=prompt.given.id,
            prompt=prompt.given.prompt,
            prompt_token_ids=prompt.token_ids,
            sampling=point,
            seeds=sample_seeds(generation.seed, prompt.given.id, point, generation.num_samples),
            max_tokens=generation.max_tokens,
            stop_token_ids=tuple(sorted({*prompt.stop_token_ids, *stop_at.token_ids})),
            stop=stop_at.texts,
            logprobs=generation.logprobs,
            structure=structure,
        )
        for prompt in prompts
        for point in sampling_points(generation)
    ]


def build_manifest(
    config: GenerateConfig,
    model: ModelInfo,
    backend: Backend,
    prompts_path: Path,
    count: int,
    stop_token_ids: list[int] | None,
) -> dict[str, Any]:
    """The manifest of the samples of `output_dir`; see `nemo_gdpo.generation.manifest`."""
    generation = config.generation
    return {
        "format": FORMAT,
        "model": {
            "path": str(model.path.resolve()),
            "hash": model.model_hash,
            "encoding": model.encoding_hash,
        },
        "settings": {
            "num_samples": generation.num_samples,
            "max_tokens": generation.max_tokens,
            "stop": list(generation.stop),
            "stop_token_ids": stop_token_ids,
            "seed": generation.seed,
            "logprobs": generation.logprobs,
            **backend.settings,
        },
        "engine": backend.info,
        "points": [point.to_dict() for point in sampling_points(generation)],
        "prompt_files": [
            {
                "path": str(prompts_path.resolve()),
                "sha256": file_sha256(prompts_path),
                "prompts": count,
            }
        ],
        "nemo_gdpo": __version__,
    }


def _sample(
    missing: Sequence[Request],
    backend: Backend,
    model: ModelInfo,
    store: Store,
    stop: StopRequest,
    constraints: Constraints | None,
) -> list[NotMade]:
    """Write the rows as they finish; those that could not be made."""
    longest = max(len(r.prompt_token_ids) + r.max_tokens for r in missing)
    engine = backend.start(longest)
    stop.notify(engine.stop)
    versions = {"nemo_gdpo": __version__, **engine.describe()}
    total = sum(len(request.seeds) for request in missing)
    answers = tokens = 0
    begun = time.monotonic()
    not_made: list[NotMade] = []
    try:
        with progress_bar(total=total, unit="answer", label="sampling", enabled=True) as bar:
            for row in engine.generate(missing):
                if isinstance(row, NotMade):
                    not_made.append(row)
                    bar.update(len(row.request.seeds))
                    continue
                built = build_row(row, model.model_hash, versions)
                store.append(built | verdict_columns(row, constraints))
                answers += len(row.samples)
                tokens += sum(sample.token_count for sample in row.samples)
                rate = tokens / max(time.monotonic() - begun, 1e-9)
                bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
                bar.update(len(row.samples))
    except RefusedError as error:
        # What is left of an earlier run may be just what the server refuses.
        left = [request for request in missing if key_of(request) not in store.done]
        if not store.done or len(left) >= REFUSED_AT_FIRST:
            raise
        reason = f"the server refuses it ({error.reason})"
        not_made = [NotMade(request, reason, is_refused=True) for request in left]
    finally:
        engine.close()
    seconds = time.monotonic() - begun
    print(
        f"sampled {answers} answers, {tokens} tokens in {seconds:.1f} s "
        f"({tokens / max(seconds, 1e-9):.0f} tokens/s)"
    )
    return not_made


def build_row(row: Completed, model_hash: str, versions: dict[str, str]) -> dict[str, Any]:
    """One line of generations-*.jsonl. Lists have one entry a sample, in the order of the seeds."""
    request, samples = row.request, row.samples
    ids = [sample.token_ids for sample in samples]
    built: dict[str, Any] = {
        "id": request.id,
        "prompt": request.prompt,
        "sampling": request.sampling.to_dict(),
        "outputs": [sample.text for sample in samples],
        "finish_reasons": [sample.finish_reason for sample in samples],
        "stop_reasons": [sample.stop_reason for sample in samples],
        "seeds": list(request.seeds),
        "token_counts": [sample.token_count for sample in samples],
        "prompt_token_ids": list(request.prompt_token_ids),
        # A server may not tell its tokens; then the row has none at all.
        "token_ids": None if None in ids else ids,
        "model_hash": model_hash,
        "versions": versions,
    }
    if request.logprobs != "none":
        built["cumulative_logprobs"] = [sample.cumulative_logprob for sample in samples]
    if request.logprobs == "tokens":
        built["token_logprobs"] = [sample.token_logprobs for sample in samples]
    return built


if __name__ == "__main__":
    own_process()
    end_with_parent(signal.SIGKILL)  # it holds the lock, and each row is whole once it is written
    sys.exit(main(sys.argv[1:]))
