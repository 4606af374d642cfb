"""lm-eval, really run without a network on a custom task, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.harness.cli import lm_eval, write_report_of
from nemo_gdpo.evaluation.harness.lm_eval import lm_eval_rows, read_answers
from nemo_gdpo.evaluation.results import write_results
from tests.evaluation.made_up_results import film_results
from tests.support.locks import holding
from tests.support.models import save_model

ROOT = Path(__file__).parents[3]
ROWS = ROOT / "conf" / "lm_eval" / "film_sentiment.jsonl"
LABELS = ("positive", "negative")


def run(overrides: list[str]) -> int:
    return lm_eval(Request(overrides))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("export") / "tiny-run" / "hf")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped task, with a path to its data that holds from anywhere."""
    directory = tmp_path_factory.mktemp("tasks")
    text = (ROOT / "conf" / "lm_eval" / "film_sentiment.yaml").read_text()
    relative = "conf/lm_eval/film_sentiment.jsonl"
    assert relative in text
    (directory / "film_sentiment.yaml").write_text(text.replace(relative, str(ROWS)))
    return directory


def accuracy(model_dir: Path) -> float:
    """Share of rows whose label is likelier after the prompt, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    right = 0
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    for row in rows:
        prompt = f"Review: {row['text']}\nIs this review positive or negative? It is"
        scores = []
        for label in LABELS:
            start = len(tokenizer(prompt).input_ids)
            ids = torch.tensor([tokenizer(f"{prompt} {label}").input_ids])
            with torch.inference_mode():
                logps = model(ids).logits.log_softmax(-1)[0, :-1]
            picked = logps.gather(1, ids[0, 1:, None])[:, 0]
            scores.append(float(picked[start - 1 :].sum()))
        right += scores.index(max(scores)) == row["label"]
    return right / len(rows)


def test_shipped_task_and_the_report(
    model: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(film_results(), tmp_path)
    status = run(
        [
            f"model.restore_from_path={model}",
            "tasks=film_sentiment",
            f"include_path={tasks}",
            f"output_dir={tmp_path}",
            "device=cpu",
            "batch_size=4",
        ]
    )
    assert status == 0
    (answer,) = read_answers(tmp_path)
    # runs/NAME/hf is called NAME.
    assert answer["name"] == "tiny-run"
    found = answer["results"]["film_sentiment"]["acc,none"]
    expected = accuracy(model)
    assert found == expected
    error = (expected * (1 - expected) / 15) ** 0.5
    rows = [["tiny-run", "film_sentiment", "acc", f"{expected:.4f}", f"{error:.4f}", "0", "all"]]
    assert lm_eval_rows([answer]) == rows
    page = (tmp_path / "report.html").read_text()
    assert "Downstream tasks" in page and f"<td>{expected:.4f}</td>" in page
    assert f"tiny-run film_sentiment acc {expected:.4f} ± {error:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=x"], "model.restore_from_path: is not set"),
        (["model.restore_from_path=/nowhere", "tasks=x"], "/nowhere has no config.json"),
        (["model.restore_from_path=MODEL"], "tasks: is empty"),
        (
            ["model.restore_from_path=MODEL", "tasks=x", "include_path=/nowhere"],
            "is not a directory",
        ),
        (["model.restore_from_path=MODEL", "tasks=x", "device=cuda:9"], "no CUDA device"),
        (["model.restore_from_path=MODEL", "tasks=x", "dtype=fp64"], "not one of fp32, bf16"),
        (["model.restore_from_path=MODEL", "tasks=film_sentimant"], "film_sentimant not among"),
    ],
)
def test_refuses(model: Path, arguments: list[str], message: str) -> None:
    if "cuda" in message.lower() and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match=message):
        run([argument.replace("MODEL", str(model)) for argument in arguments])


def test_data_that_are_not_here(model: Path, tmp_path: Path) -> None:
    # A task of lm-eval's own, whose data set is on the hub.
    arguments = [f"model.restore_from_path={model}", "tasks=arc_easy", f"output_dir={tmp_path}"]
    with pytest.raises(UserError, match="the data of arc_easy are not on this machine"):
        run([*arguments, "device=cpu"])
    assert not (tmp_path / "lm_eval").exists()


def test_a_foreign_file_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "x.json").write_text("{}")
    with pytest.raises(UserError, match="not written by nemo-gdpo evaluate lm-eval; remove it"):
        read_answers(tmp_path)


def test_an_evaluation_under_way_writes_the_report_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two that wrote one report would leave that of whoever came last."""
    write_results(film_results(), tmp_path)
    with holding(tmp_path) as other:
        write_report_of(tmp_path)
        assert not (tmp_path / "report.html").exists()
        assert "another run is writing into" in capsys.readouterr().out
        other.kill()
    write_report_of(tmp_path)
    assert (tmp_path / "report.html").is_file()
