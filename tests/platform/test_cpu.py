"""The CPU platform, as the tests' own process has it installed."""

from __future__ import annotations

import subprocess
import sys

from tests.support.ranks import clean_environment

STARTED = """
import sys, torch
real = torch.compile
from nemo_gdpo.platform import current_platform
current_platform()
from megatron.core.fusions.fused_bias_geglu import bias_geglu
assert torch.compile is real
assert not hasattr(bias_geglu, "_torchdynamo_orig_callable")
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_it_leaves_megatrons_functions_as_they_are_written() -> None:
    """Decorating them would import torch's compiler in every process, which calls none of them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STARTED],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
