"""The protocol is data, and what it should not have is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from examples.film_reviews.evidence.protocol import OUTCOMES, PATH, read_protocol
from nemo_gdpo.errors import UserError


def test_what_is_committed_is_read() -> None:
    protocol = read_protocol()
    assert protocol.sha256 == hashlib.sha256(PATH.read_bytes()).hexdigest()
    assert protocol.control.fall == 0.05
    assert protocol.shares == [0.5, 0.95]
    main = [claim for claim in protocol.claims if claim.main]
    assert len(main) >= 5
    for claim in main:
        assert list(claim.means) == list(OUTCOMES)
        assert len(set(claim.means.values())) == 3
    # Every claim of diversity is guarded by the control.
    ungarded = {claim.y for claim in protocol.claims} - set(protocol.control.guards)
    assert ungarded == {"reward"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("fall: 0.05", "fall: 0.05\n  fell: 1", "Key 'fell' not in 'Control'"),
        ("  fall: 0.05\n", "", "fall"),
        ("fall: 0.05", "fall: much", "much"),
        ("resamples: 2000", "resamples: 2000\nresamples: 3000", "duplicate key resamples"),
        ("resamples: 2000", "resamples: 5", "at least 100"),
        ("kind: no_worse", "kind: nicer", "kind nicer: one of matched, last, no_worse"),
        ("group: pairs", "group: pears", "group pears: one of"),
        ("id: gdpo-coverage", "id: gdpo-semantic", "claim gdpo-semantic is there twice"),
        ("least_gain: {reward: 0.05, kl: 0.5}", "least_gain: {reward: 0.05}", "x kl: least_gain"),
        ("margin: 0.02", "margin: -0.02", "margin: must be above 0"),
        ("shares: [0.5, 0.95]", "shares: [0.5, 1.5]", "shares: between 0 and 1"),
        ("kind: last", "kind: last\n    first_sweep: true", "read with kind matched only"),
        ("      refuted: >-", "      rejected: >-", "means rejected: one of held"),
        ("resamples: 2000", "resamples: 2000\nsha256: abc", "sha256 is computed"),
    ],
)
def test_refused(tmp_path: Path, old: str, new: str, line: str) -> None:
    path = tmp_path / "protocol.yaml"
    text = PATH.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=line) as caught:
        read_protocol(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_protocol(tmp_path / "none.yaml")
