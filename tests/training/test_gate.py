"""The check of step 0 in bf16, on real models: the same one passes, another one does not.

Another one has the same weights, and a rope base of 500,000 instead of 10,000 in its config.json.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.training.mesh import leave_world
from nemo_gdpo.training.rounding import measure_noise
from nemo_gdpo.training.run import References, Run
from nemo_gdpo.training.sanity import Step0MismatchError
from tests.support.commands import common, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.slow

OBJECTIVES = {
    "dpo": ["objective=dpo"],
    "ipo": ["objective=ipo"],
    "spl": ["objective=spl"],
    "odpo": ["objective=odpo"],
    "adpo": ["objective=adpo"],
    "gdpo_tb": ["objective=gdpo"],
    "gdpo_db": ["objective=gdpo", "objective.balance=db"],
    "gdpo_subtb": ["objective=gdpo", "objective.balance=subtb"],
    "gdpo_tempered": ["objective=gdpo", "objective.eos_temperature=0.5"],
    "one pair": ["objective=dpo", "model.global_batch_size=1", "model.micro_batch_size=1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gate")
    save_model(root / "model")
    other = {"rope_type": "default", "rope_theta": 500_000.0}
    save_model(root / "other", rope_parameters=other)
    write_jsonl(root / "pairs.jsonl", pairs(16))
    return root


def built(folder: Path, model: str, name: str) -> Run:
    given = common(folder / model, folder / "pairs.jsonl", folder / f"{name}-{model}", *steps(2))
    given += ["precision=bf16", *OBJECTIVES[name]]
    return Run.build(TRAIN.parse(compose(given, TRAIN).plain))


def first_step(folder: Path, name: str, *, reference_of: str) -> None:
    """One update of the model, with the reference of one of the two."""
    try:
        own = built(folder, "model", name)
        with own.stop_request() as stop:
            references: References = own.prepare_reference(stop)
        if reference_of != "model":
            leave_world()
            strange = built(folder, reference_of, name)
            with strange.stop_request() as stop:
                references = strange.prepare_reference(stop)
            leave_world()
            own = built(folder, "model", name)
        with own.stop_request() as stop:
            own.build_trainer(references, stop).train_step()
    finally:
        leave_world()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_same_model_passes(folder: Path, name: str) -> None:
    first_step(folder, name, reference_of="model")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_model_with_another_rope_base_does_not(folder: Path, name: str) -> None:
    with pytest.raises(Step0MismatchError, match="must be the same model before the first update"):
        first_step(folder, name, reference_of="other")


def test_the_noise_is_what_lies_between_two_precisions(folder: Path) -> None:
    """In bf16 and in fp32 the same pairs differ by about as much as is measured in bf16 alone."""
    found, noise = {}, None
    for precision in ("bf16", "fp32"):
        given = common(folder / "model", folder / "pairs.jsonl", folder / precision, *steps(2))
        try:
            run = Run.build(TRAIN.parse(compose([*given, f"precision={precision}"], TRAIN).plain))
            run.model.prepare_for_inference()
            batches = run.batches(run.data["train"]).build(range(16), None)
            measured = measure_noise(run.model, batches, batch_size=16)
            assert (measured is None) == (precision == "fp32")
            noise = noise or measured
            rows = [
                row.sum() / len(row) ** 0.5
                for batch, values in zip(
                    batches, run.model.get_reference_logprobs(batches), strict=True
                )
                for row in values[:, 0].split(batch.rows.response_lengths_N.tolist())
            ]
            found[precision] = torch.stack(rows)
        finally:
            leave_world()
    assert noise is not None
    real = float((found["bf16"] - found["fp32"]).square().mean().sqrt())
    assert real / 3 < noise.logp < real * 3
