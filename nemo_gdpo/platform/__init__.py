"""Capabilities of this machine: the platform is chosen once, at start; asked, never guessed.

Import this package before any other megatron import: the CPU platform has to be installed first.
"""

from __future__ import annotations

from nemo_gdpo.importing import uncollected

with uncollected():  # it imports torch
    from nemo_gdpo.platform.base import Capabilities, Finding, Platform, Support
    from nemo_gdpo.platform.select import current_platform, detect_capabilities

__all__ = [
    "Capabilities",
    "Finding",
    "Platform",
    "Support",
    "current_platform",
    "detect_capabilities",
]
