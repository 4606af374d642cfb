"""The end of a job's time: where it comes from, and what is kept free before it."""

from __future__ import annotations

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.launch.time_limit import time_limit

BEGUN = 1_000_000.0
OWN, SLURM = "NEMO_GDPO_END_TIME", "SLURM_JOB_END_TIME"


@pytest.mark.parametrize(
    ("environ", "max_minutes", "end", "key"),
    [
        ({SLURM: "1003600"}, None, 1_003_600.0, SLURM),
        ({OWN: "1007200", SLURM: "1003600"}, None, 1_007_200.0, OWN),
        ({}, 30.0, 1_001_800.0, "trainer.max_minutes"),
        # Whichever comes first: the job ends when it ends.
        ({SLURM: "1003600"}, 30.0, 1_001_800.0, "trainer.max_minutes"),
        ({SLURM: "1003600"}, 90.0, 1_003_600.0, SLURM),
        ({OWN: "", SLURM: "1003600"}, None, 1_003_600.0, SLURM),
    ],
)
def test_the_end(environ: dict[str, str], max_minutes: float | None, end: float, key: str) -> None:
    limit = time_limit(environ, max_minutes, begun=BEGUN)
    assert limit is not None
    assert (limit.end, limit.key, limit.margin) == (end, key, 60.0)


def test_nobody_says() -> None:
    assert time_limit({}, None, begun=BEGUN) is None


def test_a_short_time_is_not_all_margin() -> None:
    limit = time_limit({}, 0.5, begun=BEGUN)
    assert limit is not None
    assert limit.margin == pytest.approx(3.0)
    past = time_limit({OWN: "999999"}, None, begun=BEGUN)
    assert past is not None
    assert past.margin == 0.0


@pytest.mark.parametrize("text", ["tomorrow", "nan", "inf"])
@pytest.mark.parametrize("name", [OWN, SLURM])
def test_no_time(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"{name}={text} in the environment is not a time"):
        time_limit({name: text}, None, begun=BEGUN)
