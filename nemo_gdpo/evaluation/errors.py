"""The error of an evaluation that fails while it measures."""

from __future__ import annotations

from nemo_gdpo.errors import RunError


class EvaluationError(RunError):
    """The disk or the judge's server failed; one line says what, and what is safe."""
