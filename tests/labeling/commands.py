"""`nemo-gdpo label` in this process, on a small data set with margins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo import cli
from nemo_gdpo.errors import EXIT_DONE
from nemo_gdpo.io.rows import encode_row
from nemo_gdpo.labeling.choose import Margins, header
from nemo_gdpo.labeling.ledger import Ledger
from nemo_gdpo.labeling.pairs import data_fingerprint, pair_key
from nemo_gdpo.labeling.state import State

MARGINS = (0.5, -0.1, 2.0, 0.0, -3.0, 0.2)
"""By pair: the order by |margin| is 3, 1, 5, 0, 2, 4."""


class Desk:
    """A directory with pairs, their margins and a ledger."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = path, capsys
        self.pairs, self.ledger = path / "pairs.jsonl", path / "labels.sqlite"
        self.margins = path / "margins.jsonl"
        self.write_pairs()
        self.write_margins()

    def write_pairs(self, extra: str = "") -> None:
        rows = [
            {
                "id": f"p{n}", "prompt": f"Ask {n}{extra}",
                "chosen": f"Good {n}.", "rejected": f"Bad {n}.",
            }
            for n in range(len(MARGINS))
        ]  # fmt: skip
        self.pairs.write_bytes(b"".join(encode_row(row) for row in rows))

    def key(self, number: int) -> str:
        return pair_key(f"Ask {number}", f"Good {number}.", f"Bad {number}.")

    def write_margins(self, *, base: str = "b" * 64, count: int = len(MARGINS)) -> None:
        keys = [self.key(n) for n in range(len(MARGINS))]
        of_pair = dict(list(zip(keys, MARGINS, strict=True))[:count])
        margins = Margins("m" * 64, base, 40, data_fingerprint(keys), of_pair)
        rows = [header(margins), *({"pair": p, "margin": m} for p, m in of_pair.items())]
        self.margins.write_bytes(b"".join(encode_row(row) for row in rows))

    def run(self, step: str, *arguments: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr) of a step on the ledger."""
        self._capsys.readouterr()
        status = cli.main(["label", step, f"label.ledger={self.ledger}", *arguments])
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def done(self, step: str, *arguments: str) -> str:
        """What a step that ends well prints."""
        status, out, err = self.run(step, *arguments)
        assert (status, err) == (EXIT_DONE, "")
        return out

    def select(self, count: int, *arguments: str) -> str:
        """Ask about the most uncertain pairs."""
        return self.done(
            "select", f"data.train_path={self.pairs}", f"label.margins={self.margins}",
            f"label.count={count}", *arguments,
        )  # fmt: skip

    def state(self) -> State:
        with Ledger(self.ledger) as ledger:
            return ledger.state()

    def asked(self) -> list[str]:
        """Ids of the pairs that were asked about, in their order."""
        return [asked.question.id for asked in self.state().asked.values()]

    def export(self, name: str, *arguments: str) -> Any:
        """What is exported, read back: tasks of a .json file, or lines."""
        path = self.path / name
        format = "label_studio" if path.suffix == ".json" else "jsonl"
        self.done("export", f"label.output={path}", f"label.format={format}", *arguments)
        text = path.read_text(encoding="utf-8")
        if format == "label_studio":
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines()]

    def give_back(self, name: str, content: Sequence[Mapping[str, Any]]) -> tuple[int, str, str]:
        """Import a file with `content`."""
        path = self.path / name
        if path.suffix == ".json":
            path.write_text(json.dumps(content), encoding="utf-8")
            format = "label_studio"
        else:
            path.write_bytes(b"".join(encode_row(row) for row in content))
            format = "jsonl"
        return self.run("import", f"label.answers={path}", f"label.format={format}")


def annotated(
    task: Mapping[str, Any], *results: Mapping[str, Any], user: Any = 1, **more: Any
) -> Any:
    """A task as Label Studio exports it, with one annotation."""
    annotation = {
        "id": 5, "completed_by": user, "result": list(results), "was_cancelled": False,
        "created_at": "2026-01-01T08:00:00.000000Z", "updated_at": "2026-01-01T08:00:05.123000Z",
        "lead_time": 4.2, **more,
    }  # fmt: skip
    return {"id": 17, **task, "annotations": [annotation], "predictions": [], "project": 3}


def side(selected: str) -> dict[str, Any]:
    """A result of the `Pairwise` tag."""
    return {
        "id": "a1", "type": "pairwise", "from_name": "better", "to_name": "left",
        "origin": "manual", "value": {"selected": selected},
    }  # fmt: skip


def choice(*chosen: str) -> dict[str, Any]:
    """A result of the `Choices` tag."""
    return {
        "id": "a2", "type": "choices", "from_name": "neither", "to_name": "prompt",
        "origin": "manual", "value": {"choices": list(chosen)},
    }  # fmt: skip


def rating(stars: int) -> dict[str, Any]:
    """A result of the `Rating` tag."""
    return {
        "id": "a3", "type": "rating", "from_name": "strength", "to_name": "prompt",
        "origin": "manual", "value": {"rating": stars},
    }  # fmt: skip
