"""docs/evidence.md, its pictures and benchmarks/evidence/results.json, from the records alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.film_reviews.evidence import page
from examples.film_reviews.evidence.arms import BY_NAME
from examples.film_reviews.evidence.claims import Judged, excluded_points, judge
from examples.film_reviews.evidence.compare import Comparison
from examples.film_reviews.evidence.plots import along_runs, label_efficiency
from examples.film_reviews.evidence.protocol import PATH, Protocol, read_protocol
from examples.film_reviews.evidence.records import Records, read_records
from examples.film_reviews.evidence.world import World
from examples.film_reviews.inputs import ROOT
from examples.film_reviews.pairs import write_atomically

PICTURES = (
    (
        "evidence",
        ("dpo", "gdpo-tb"),
        ("reward", "semantic_diversity"),
        ("Diversity beside reward, along the runs", "reward (VADER)", "semantic diversity"),
    ),
    (
        "evidence_coverage",
        ("dpo", "gdpo-tb"),
        ("reward", "coverage"),
        ("The reference's most probable sentences", "reward (VADER)", "share that is kept"),
    ),
    (
        "evidence_arms",
        ("dpo", "gdpo-subtb", "gdpo-db", "spl", "dpo-divpo"),
        ("reward", "semantic_diversity"),
        ("The other arms", "reward (VADER)", "semantic diversity"),
    ),
    (
        "evidence_frontier",
        ("dpo", "gdpo-tb", "odpo-log"),
        ("kl", "reward"),
        ("Reward for divergence, along the runs", "KL from the reference, nats", "reward (VADER)"),
    ),
)
"""Name, families, (x, y), (title, axes)."""


def publish(world: World, *, notes: Sequence[str]) -> Path:
    """Write everything; returns the page's path. The quick profile's lies in its own directory."""
    is_main = world.profile == "cpu"
    results = world.records_dir.parent
    docs = ROOT / "docs" if is_main else results
    records = read_records(world.records_dir, list(BY_NAME))
    protocol = read_protocol()
    judged = judge(records, protocol)
    images = docs / "images"
    drawn = _pictures(records, protocol, images)
    text = page.markdown(
        records,
        protocol,
        judged,
        pictures=drawn,
        settings=world.settings.plain(),
        notes=notes,
        stamp=protocol_stamp(protocol),
        profile=world.profile,
    )
    path = docs / "evidence.md"
    write_atomically(path, text)
    write_atomically(results / "results.json", _plain(protocol, judged))
    return path


def _pictures(records: Records, protocol: Protocol, directory: Path) -> list[str]:
    excluded = frozenset(excluded_points(records, protocol))
    comparison = Comparison(records, min(500, protocol.resamples), excluded)
    names = []
    for name, families, (x, y), labels in PICTURES:
        if any(records.arms_of(family) for family in families):
            path = directory / f"{name}.png"
            along_runs(records, comparison, families, x=x, y=y, labels=labels, path=path)
            names.append(name)
    if records.arms_of("adpo"):
        label_efficiency(records, comparison, directory / "evidence_labels.png")
        names.append("evidence_labels")
    return names


def protocol_stamp(protocol: Protocol) -> str:
    """When the protocol was committed, as git tells it; without git its hash alone."""
    short = f"SHA-256 {protocol.fingerprint[:16]}"
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%h of %ad", "--date=iso-strict"]
    command += ["--", str(PATH)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return short
    said = done.stdout.strip()
    return f"{short}, last changed by commit {said}" if done.returncode == 0 and said else short


def _plain(protocol: Protocol, judged: Judged) -> str:
    verdicts: list[dict[str, Any]] = [
        {
            "id": verdict.claim.id,
            "claim": verdict.claim.text,
            "outcome": verdict.outcome,
            "why": verdict.why,
            "differences": [dataclasses.asdict(d) for d in verdict.differences],
        }
        for verdict in judged.verdicts
    ]
    control = {
        "passed": judged.control.passed,
        "differences": {
            name: dataclasses.asdict(d.value) for name, d in judged.control.differences.items()
        },
    }
    everything = {
        "schema": 1,
        "protocol": protocol.fingerprint,
        "positive control": control,
        "claims": verdicts,
        "excluded points": list(judged.excluded),
    }
    return json.dumps(everything, indent=1, allow_nan=False) + "\n"
