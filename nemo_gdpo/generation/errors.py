"""The error of a run that fails while it samples."""

from __future__ import annotations

from nemo_gdpo.errors import RunError


class GenerationError(RunError):
    """The disk, the engine or the server failed; one line says what, and what is safe."""
