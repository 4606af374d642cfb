"""Measure this project's DPO training beside TRL's: `make bench`, or

    python -m benchmarks.peers --workload cpu --trl-python PYTHON
    python -m benchmarks.peers --mix summaries --vocabulary 131072 --trl-python PYTHON

Every arm is a process of its own, one after the other, in rounds, so that whatever else the machine
does falls on all. A table and `results.json` say what came of it. Ends with 1 where arms failed or
did not train the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, RUNS, machine
from benchmarks.peers.table import differences, disagreements, table
from benchmarks.peers.workloads import MIXES, SPECIAL, WORKLOADS, Workload, cell, prepare

TRL_PROGRAM = Path(__file__).with_name("trl_arm.py")
TRL_ARMS = ("TRL, live", "TRL, precomputed")
OUR_ARMS = ("ours, padded", "ours, packed", "ours, packed, prompts shared", "ours, packed, live")
CELL_ARMS = ("TRL, live", "ours, packed, live", "ours, packed, prompts shared")
"""Of another mix or vocabulary, where no others are asked for."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cpu")
    parser.add_argument("--mix", choices=list(MIXES), help="other lengths, in few minutes")
    parser.add_argument("--vocabulary", type=int, help="another vocabulary, likewise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=90, help="begin no arm after so many")
    parser.add_argument("--arm-minutes", type=float, default=15, help="of one arm at most")
    parser.add_argument("--folder", type=Path, help="model, pairs, logs, results.json")
    parser.add_argument("--trl-python", default=sys.executable, help="has TRL; or --trl-path")
    parser.add_argument("--trl-path", help="folder of packages that PYTHONPATH gives TRL's Python")
    parser.add_argument("--arms", nargs="*", help="by name")
    parser.add_argument("--go-on", action="store_true", help="keep the arms that are there")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of our runs")
    asked = parser.parse_args()
    if asked.arms is None:
        is_cell = asked.mix is not None or asked.vocabulary is not None
        asked.arms = list(CELL_ARMS) if is_cell else [*TRL_ARMS, *OUR_ARMS]
    if asked.vocabulary is not None and asked.vocabulary <= len(SPECIAL):
        parser.error(f"--vocabulary {asked.vocabulary}: at least {len(SPECIAL) + 1}")
    return asked


def command(arm: str, folder: Path, result: Path, asked: argparse.Namespace) -> list[str]:
    """The program of an arm."""
    if arm in TRL_ARMS:
        return [asked.trl_python, str(TRL_PROGRAM), str(folder), arm, str(result)]
    program = [sys.executable, "-m", "benchmarks.peers.ours"]
    return [*program, str(folder), arm, str(result), *asked.set]


def environment(arm: str, device: str, asked: argparse.Namespace) -> dict[str, str]:
    """Variables of an arm: nothing from the network, and one thread on a CPU."""
    found = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        found |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if arm in TRL_ARMS and asked.trl_path:
        found["PYTHONPATH"] = asked.trl_path
    return found


def run_arm(arm: str, folder: Path, log: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """What an arm found, or why it did not."""
    device, result = WORKLOADS[asked.workload].settings.device, folder / "result.json"
    result.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as out:
        try:
            done = subprocess.run(
                command(arm, folder, result, asked), env=environment(arm, device, asked),
                stdout=out, stderr=subprocess.STDOUT, timeout=60 * asked.arm_minutes,
                cwd=ROOT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {asked.arm_minutes:g} minutes, see {log}"}
    if done.returncode or not result.is_file():
        return {"failed": f"status {done.returncode}, {why(log)}, see {log}"}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def why(log: Path) -> str:
    """The last line of a log that names an error, or the last of all."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    errors = [line for line in said if "error" in line.lower()]
    return (errors or said)[-1].strip()[:200].replace("|", "/")


def done_rounds(path: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds of an earlier run of the same measurement on this machine; none of another."""
    there: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    same = all(there.get(name) == report[name] for name in report if name != "rounds")
    return list(there["rounds"]) if same else []


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds; `results.json` is written after every arm."""
    begun, rounds = time.monotonic(), list[dict[str, Any]]()
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    report = {"machine": machine(), "settings": settings, "set": asked.set, "rounds": rounds}
    if asked.go_on:
        rounds += done_rounds(folder / "results.json", report)
    (folder / "logs").mkdir(exist_ok=True)
    for number in range(asked.rounds):
        for arm in asked.arms:
            if number < len(rounds) and "steps" in rounds[number].get(arm, {}):
                continue
            spent = (time.monotonic() - begun) / 60
            if spent > asked.minutes:
                return report
            if not rounds or len(rounds) <= number:
                rounds.append({})
            name = arm.replace(", ", "-").replace(" ", "_")
            found = run_arm(arm, folder, folder / "logs" / f"{name}-{number}.log", asked)
            rounds[number][arm] = found
            told = found.get("failed") or f"peak {found['peak_bytes'] / 2**30:.2f} GiB"
            print(f"{spent:5.1f} min  round {number}  {arm}: {told}", flush=True)
            (folder / "results.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report


def heading(report: dict[str, Any]) -> str:
    """Where and with what it ran."""
    rounds, settings = report["rounds"], report["settings"]
    parts = [f"{settings['workload']}: {report['machine']}"]
    told = set[str]()
    for one in rounds:
        for arm, found in one.items():
            side = arm.partition(",")[0]
            if "steps" in found and side not in told:
                told.add(side)
                versions = [f"{name} {value}" for name, value in found["versions"].items()]
                parts.append(f"{side} on {found['device']} with {', '.join(versions)}")
    timed = settings["updates"] - settings["warm_ups"]
    parts.append(
        f"{len(rounds)} rounds of {settings['warm_ups']} + {timed} updates of {settings['batch']} "
        f"pairs, {settings['precision']}"
    )
    return "; ".join(parts)


def tell(report: dict[str, Any], work: Workload) -> int:
    """Print the table and the check; returns the exit status."""
    rounds = report["rounds"]
    print(f"\n{heading(report)}\n")
    print("\n".join(table(rounds, report["settings"])))
    print("\nGreatest difference from the first arm, over all updates of all rounds:")
    for arm, gaps in differences(rounds).items():
        print(f"  {arm}: {', '.join(f'{what} {gap:.1e}' for what, gap in gaps.items())}")
    wrong = list(disagreements(rounds, work.loss_tolerance))
    for line in wrong:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Prepare, measure, tell."""
    asked = parse()
    if WORKLOADS[asked.workload].settings.device == "cuda" and not torch.cuda.is_available():
        print(
            f"bench: workload {asked.workload} takes a GPU that {sys.executable}'s torch can use; "
            "choose --workload cpu, or a Python with CUDA (make bench WORKLOAD=gpu)",
            file=sys.stderr,
        )
        return 2
    changes = [str(one) for one in (asked.mix, asked.vocabulary) if one is not None]
    name = "-".join([asked.workload, *changes])
    folder = (asked.folder or RUNS / name).absolute()
    work = prepare(name, folder, cell(WORKLOADS[asked.workload], asked.mix, asked.vocabulary))
    return tell(measure(asked, folder), work)


if __name__ == "__main__":
    sys.exit(main())
