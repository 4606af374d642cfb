"""Query counts, reduced metrics, the metrics file, the length of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.model import ModelConfig
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.training import LoggerConfig, TrainerConfig
from nemo_gdpo.objectives import ADPO, DPO, GDPO, ODPO
from nemo_gdpo.training.loggers import METRICS, SUPERSEDED, MetricsLog
from nemo_gdpo.training.metrics import NotFiniteError, reduce_metrics, refuse_not_finite
from nemo_gdpo.training.parts import metric_names, total_steps
from nemo_gdpo.training.queries import QueryCount

OFF = LoggerConfig(tensorboard=False)


class TestQueryCount:
    def test_a_pair_counts_once(self) -> None:
        count = QueryCount(11)
        count.record([3, 10, 0], torch.tensor([1.0, 1.0, 0.0]))
        assert count.total == 2
        count.record([3, 0, 7], torch.tensor([1.0, 1.0, 0.0]))
        assert count.total == 3

    @pytest.mark.parametrize("pairs", [1, 7, 8, 9, 64])
    def test_state_comes_back(self, pairs: int) -> None:
        count = QueryCount(pairs)
        count.record([0, pairs - 1], torch.tensor([0.0, 1.0]))
        restored = QueryCount(pairs)
        restored.restore(json.loads(json.dumps(count.state())))
        assert restored.total == 1
        # Which pairs were asked about comes back, not only how many.
        restored.record([pairs - 1], torch.tensor([1.0]))
        assert restored.total == 1
        if pairs > 1:
            restored.record([0], torch.tensor([1.0]))
            assert restored.total == 2


class TestReduceMetrics:
    def test_means_over_the_real_slots(self) -> None:
        values = {"loss": torch.tensor([1.0, 3.0, 100.0]), "not_finite": torch.zeros(3)}
        assert reduce_metrics(DPO(), values, 2)["loss"] == 2.0

    def test_flags_are_not_logged(self) -> None:
        from nemo_gdpo.models.preference_model import NOT_FINITE

        assert reduce_metrics(DPO(), {NOT_FINITE: torch.zeros(2)}, 2) == {}

    def test_adpo_rates(self) -> None:
        values = {
            "queried": torch.tensor([1.0, 0.0, 0.0, 0.0]),
            "pseudo_label_agreement": torch.tensor([0.0, 1.0, 1.0, 0.0]),
            "label_known": torch.ones(4),
        }
        assert reduce_metrics(ADPO(), values, 4) == {
            "adpo/query_rate": 0.25,
            "adpo/pseudo_label_agreement": pytest.approx(2 / 3),
        }

    def test_adpo_agreement_without_a_guess(self) -> None:
        values = {"queried": torch.ones(2), "pseudo_label_agreement": torch.zeros(2)}
        values["label_known"] = torch.ones(2)
        assert reduce_metrics(ADPO(), values, 2)["adpo/pseudo_label_agreement"] == 1.0

    def test_adpo_agreement_where_some_labels_are_not_known(self) -> None:
        """Of three guesses one agrees with its label, one does not, and of one nothing is known."""
        values = {
            "queried": torch.tensor([1.0, 0.0, 0.0, 0.0]),
            "pseudo_label_agreement": torch.tensor([0.0, 1.0, 0.0, 0.0]),
            "label_known": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        }
        assert reduce_metrics(ADPO(), values, 4)["adpo/pseudo_label_agreement"] == 0.5


class TestRefuseNotFinite:
    def test_finite_passes(self) -> None:
        refuse_not_finite({"loss": torch.ones(2), "not_finite": torch.zeros(2)}, ["a", "b"], 3)

    @pytest.mark.parametrize(
        ("loss", "flag"), [([1.0, float("nan")], [0.0, 0.0]), ([1.0, 1.0], [0.0, 1.0])]
    )
    def test_the_pair_is_named(self, loss: list[float], flag: list[float]) -> None:
        values = {"loss": torch.tensor(loss), "not_finite": torch.tensor(flag)}
        with pytest.raises(NotFiniteError, match=r"step 3: .* for pairs b;"):
            refuse_not_finite(values, ["a", "b"], 3)


def test_metric_names_are_those_of_the_objective() -> None:
    assert {"queried", "pseudo_label_agreement"} <= set(metric_names(ADPO()))
    assert "odpo/offset" in metric_names(ODPO(offset="ratio"))
    assert "gdpo/log_flow" in metric_names(GDPO(eos_temperature=0.5))


class TestMetricsLog:
    def lines(self, directory: Path) -> list[str]:
        return (directory / "metrics.jsonl").read_text().splitlines()

    def test_steps_that_come_again_and_a_torn_line_are_dropped(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(
            '{"step": 0, "loss": 1.5}\n{"step": 1, "loss": 2}\n{"step": 2, "loss": 3}\n{"st'
        )
        with MetricsLog(OFF, tmp_path, enabled=True, resume_step=2) as log:
            log.write({"step": 2, "loss": 4.0})
        assert [json.loads(line) for line in self.lines(tmp_path)] == [
            {"step": 0, "loss": 1.5},
            {"step": 1, "loss": 2},
            {"step": 2, "loss": 4.0},
        ]

    def test_a_last_line_without_its_end_is_kept_apart(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}')
        with MetricsLog(OFF, tmp_path, enabled=True, resume_step=1) as log:
            log.write({"step": 1, "loss": 2.0})
        assert len(self.lines(tmp_path)) == 2

    def test_a_new_run_starts_empty(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
        MetricsLog(OFF, tmp_path, enabled=True, resume_step=0).__exit__(None, None, None)
        assert self.lines(tmp_path) == []

    def test_every_line_is_there_as_soon_as_it_is_written(self, tmp_path: Path) -> None:
        with MetricsLog(OFF, tmp_path, enabled=True, resume_step=0) as log:
            log.write({"step": 0})
            assert self.lines(tmp_path) == ['{"step": 0}']

    def test_nothing_is_lost(self, tmp_path: Path) -> None:
        lines = ['{"step": 0}\n', '{"step": 1, "loss": 2}\n', '{"step": 2}\n', '{"st']
        (tmp_path / METRICS).write_text("".join(lines))
        with MetricsLog(OFF, tmp_path, enabled=True, resume_step=1) as log:
            log.write({"step": 1, "loss": 3})
        assert self.lines(tmp_path) == ['{"step": 0}', '{"step": 1, "loss": 3}']
        superseded = (tmp_path / SUPERSEDED).read_text()
        assert superseded == "".join(lines[1:]) + "\n"
        # Once more: what is superseded later comes after it.
        with MetricsLog(OFF, tmp_path, enabled=True, resume_step=1):
            pass
        assert (tmp_path / SUPERSEDED).read_text() == superseded + '{"step": 1, "loss": 3}\n'

    def test_a_clean_end_supersedes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / METRICS
        path.write_text('{"step": 0}\n')
        before = path.stat().st_ino
        with MetricsLog(OFF, tmp_path, enabled=True, resume_step=1):
            pass
        assert path.stat().st_ino == before
        assert not (tmp_path / SUPERSEDED).exists()

    def test_other_ranks_write_nothing(self, tmp_path: Path) -> None:
        with MetricsLog(OFF, tmp_path, enabled=False, resume_step=0) as log:
            log.write({"step": 0})
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [(5, None, 5), (None, 1, 3), (None, 2, 5), (None, 0.25, 1), (2, 1, 2), (9, 1.0, 3)],
)
def test_total_steps(steps: int | None, epochs: float | None, expected: int) -> None:
    """10 pairs in batches of 4: an epoch begins its third batch."""
    config = RunConfig(
        trainer=TrainerConfig(max_steps=steps, max_epochs=epochs),
        model=ModelConfig(global_batch_size=4),
    )
    assert total_steps(config, 10) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["trainer.max_steps=40"], 40),  # 16 passes over 10 pairs, and no default cuts it
        (["trainer.max_steps=2"], 2),
        (["trainer.max_epochs=2"], 5),
        (["trainer.max_steps=40", "trainer.max_epochs=2"], 5),
        (["trainer.max_steps=4", "trainer.max_epochs=2"], 4),
        ([], 3),
    ],
)
def test_the_length_that_was_asked_for(given: list[str], expected: int) -> None:
    plain = compose([*given, "model.global_batch_size=4"], TRAIN).plain
    assert total_steps(TRAIN.parse(plain), 10) == expected


def test_the_length_in_python_is_that_of_the_command_line() -> None:
    assert TrainerConfig(max_steps=40).max_epochs is None
    assert TrainerConfig().max_epochs == 1.0
    assert TrainerConfig(max_steps=40, max_epochs=0.5).max_epochs == 0.5
