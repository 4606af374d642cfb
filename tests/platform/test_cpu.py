"""What a process has once the CPU platform is installed, as a command's own process installs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.ranks import clean_environment

STARTED = """
import gc, json, sys, torch
from nemo_gdpo.importing import own_process
if "own" in sys.argv:
    own_process()
real, runs = torch.compile, []
gc.callbacks.append(lambda phase, info: runs.append(phase))
from nemo_gdpo.platform import current_platform
current_platform()
gc.callbacks.clear()
from megatron.core.fusions.fused_bias_geglu import bias_geglu
print(json.dumps({
    "compiler": "torch._inductor.compile_fx" in sys.modules,
    "decorated": hasattr(bias_geglu, "_torchdynamo_orig_callable"),
    "restored": torch.compile is real,
    "collections": len(runs) // 2,
    "frozen": gc.get_freeze_count(),
    "collecting": gc.isenabled(),
}))
"""


def started(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STARTED, *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """In a process of the project."""
    return started("own")


def test_megatrons_functions_are_as_they_are_written(own: dict[str, Any]) -> None:
    """Decorating them would import torch's compiler in every process, which calls none of them."""
    assert (own["compiler"], own["decorated"], own["restored"]) == (False, False, True)


def test_what_was_imported_is_not_collected(own: dict[str, Any]) -> None:
    assert own["collections"] <= 3  # of what the package imports before its first block
    assert own["frozen"] > 100_000
    assert own["collecting"]


def test_somebody_elses_collector_is_theirs() -> None:
    found = started()
    assert found["collections"] > 50
    assert found["frozen"] == 0
    assert found["collecting"]
