"""Report of a comparison of two checkpoints, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_gdpo.conversion.compare.logits import LogitsComparison
from nemo_gdpo.conversion.compare.verify import VerifyReport
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.remedies import remedy_of, unwritable

MARKDOWN, JSON = "report.md", "report.json"
_SHOWN = 20


@dataclass(frozen=True)
class Comparison:
    """Both halves of a comparison."""

    first: str
    second: str
    tensors: VerifyReport
    logits: LogitsComparison | None
    """None when only the tensors were compared."""
    tolerance: float
    """Largest difference of a logit that passes."""
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Same tensors bit for bit, and logits within the tolerance."""
        return self.tensors.same and (self.logits is None or self.logits.within(self.tolerance))

    def to_dict(self) -> dict[str, object]:
        """A JSON object."""
        return {
            "same": self.same,
            "first": self.first,
            "second": self.second,
            "tensors": self.tensors.to_dict(),
            "logits": None
            if self.logits is None
            else {
                "within_tolerance": self.logits.within(self.tolerance),
                "tolerance": self.tolerance,
                **asdict(self.logits),
            },
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Lines of the result, for the terminal."""
        found = [f"architecture differs: {line}" for line in self.tensors.config_differences]
        found += [difference.line() for difference in self.tensors.differences[:_SHOWN]]
        more = len(self.tensors.differences) - _SHOWN
        if more > 0:
            found.append(f"and {more} more")
        if self.tensors.same:
            found.append(f"same: {self.tensors.tensors} tensors, bit for bit")
        if self.logits is None:
            found.append("logits: not compared")
        else:
            logits = self.logits
            verdict = "within" if logits.within(self.tolerance) else "BEYOND"
            found += [
                f"prompts: {logits.prompts}",
                f"logits: largest difference {logits.max_abs_difference:.3g} ({verdict} "
                f"{self.tolerance:g}), mean {logits.mean_abs_difference:.3g}; same most likely "
                f"token at {100 * logits.argmax_agreement:.2f} % of {logits.positions} positions; "
                f"log p(next token) apart by {logits.max_logprob_gap:.3g} at most, "
                f"{logits.mean_logprob_gap:.3g} on average",
            ]
        return found + [f"note: {note}" for note in self.notes]

    def markdown(self) -> str:
        """The report."""
        verdict = "the same model" if self.same else "**not** the same model"
        tensors = self.tensors
        body = [
            "# Comparison of two checkpoints",
            "",
            f"- first: `{self.first}`",
            f"- second: `{self.second}`",
            f"- verdict: {verdict}",
            "",
            "## Tensors",
            "",
            f"{tensors.tensors} compared, {len(tensors.differences)} differ.",
            "",
        ]
        body += [f"- architecture: {line}" for line in tensors.config_differences]
        body += [f"- {difference.line()}" for difference in tensors.differences]
        body += ["", "## Logits", ""]
        if self.logits is None:
            body.append("Not compared.")
        else:
            logits = self.logits
            body += [
                f"Both in float32 on {logits.prompts}.",
                "",
                "| measure | value |",
                "|---|---|",
                f"| largest difference of a logit | {logits.max_abs_difference:.3e} |",
                f"| tolerance | {self.tolerance:.3e} |",
                f"| mean difference | {logits.mean_abs_difference:.3e} |",
                f"| same most likely token | {100 * logits.argmax_agreement:.2f} % of "
                f"{logits.positions} positions |",
                f"| largest gap of log p(next token) | {logits.max_logprob_gap:.3e} |",
                f"| mean gap of log p(next token) | {logits.mean_logprob_gap:.3e} |",
            ]
        body += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(body).rstrip() + "\n"

    def write(self, directory: Path) -> None:
        """Write `report.md` and `report.json` into a directory, made if needed.

        Raises:
            UserError: it cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_file(directory / JSON, json.dumps(self.to_dict(), indent=1) + "\n")
            write_file(directory / MARKDOWN, self.markdown())
        except OSError as error:
            raise unwritable(
                error,
                f"{directory}: the report cannot be written ({error.strerror or error}); "
                f"{remedy_of(error)}, or give another directory",
            ) from None
