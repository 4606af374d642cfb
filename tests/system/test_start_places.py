"""A run with nothing but a model and pairs, and the runs that start from what it left."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.commands import QUIET, metrics, several, without_timing

pytestmark = pytest.mark.parallel


def test_defaults_fit_a_short_model_and_a_run_is_a_model(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub" / "models--tiny--llama"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc")
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / "abc").symlink_to(model)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def train(start: str | Path, name: str, *more: str) -> list[str]:
        given = [f"model.restore_from_path={start}", f"data.train_path={data}"]
        return ["train", *given, f"output_dir={tmp_path / name}", *QUIET, "trainer.max_steps=1",
                "model.global_batch_size=4", *more]  # fmt: skip

    first = tmp_path / "first"
    done = several(
        tmp_path / "logs",
        {
            "first": train(model, "first", "export_hf=true"),
            "from_export": train(first / "hf", "from_export"),
            "from_run": train(first, "from_run"),
            "from_checkpoint": train(first / "checkpoints" / "latest", "from_checkpoint"),
            "from_hub": train("tiny/llama", "from_hub"),
        },
    )
    for name, result in done.items():
        assert result.status == 0, f"{name}: {result.err}"
        settings = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert settings["data"]["max_length"] == 256, name
        assert settings["data"]["max_prompt_length"] == 128, name
    found = {name: without_timing(metrics(tmp_path / name)) for name in done}
    assert found["from_hub"] == found["first"]
    assert found["from_run"] == found["from_export"] == found["from_checkpoint"]
    assert found["from_run"] != found["first"]
