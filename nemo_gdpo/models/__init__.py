"""The model on megatron-core's GPT. Importing this package installs the platform first."""

from __future__ import annotations

from nemo_gdpo.platform import current_platform

current_platform()

# The CPU shim precedes every megatron import.
from nemo_gdpo.models.preference_model import PreferenceModel  # noqa: E402

__all__ = ["PreferenceModel"]
