"""The program of a stage, or of a rank of it: `python -m nemo_gdpo.gpu_check.stage NAME DIR`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from nemo_gdpo.errors import EXIT_DONE
from nemo_gdpo.gpu_check.findings import Measurement, NotHereError, StageResult, Status, judge
from nemo_gdpo.gpu_check.machine import describe_machine
from nemo_gdpo.gpu_check.stages import STAGES, Stage
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.processes import end_with_parent
from nemo_gdpo.launch.logging import quiet_libraries

RESULT = "result.json"


def carry_out(stage: Stage, folder: Path) -> StageResult:
    """Run a stage here; whatever goes wrong in it is its result."""
    begun = time.perf_counter()
    machine = describe_machine()
    measured: list[Measurement] = []
    try:
        measured.extend(stage.function()(folder))
    except NotHereError as error:
        seconds = time.perf_counter() - begun
        return StageResult(stage.name, Status.NOT_HERE, seconds, (), str(error), machine)
    except Exception as error:  # noqa: BLE001 - the stages after this one are run all the same
        traceback.print_exc()
        seconds = time.perf_counter() - begun
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        return StageResult(stage.name, Status.FAILED, seconds, tuple(measured), reason, machine)
    return judge(stage.name, measured, time.perf_counter() - begun, machine)


def main(name: str, folder: Path) -> int:
    """Carry out stage `name` and leave its result in `folder`; the status is always 0."""
    quiet_libraries()
    stage = next(stage for stage in STAGES if stage.name == name)
    result = carry_out(stage, folder)
    from nemo_gdpo.training.mesh import leave_world  # megatron

    leave_world()
    if os.environ.get("RANK", "0") == "0":
        write_file(folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n")
    return EXIT_DONE


if __name__ == "__main__":
    end_with_parent(signal.SIGKILL)
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
