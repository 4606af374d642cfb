"""The CPU platform precedes every megatron import, in whatever order the tests are collected."""

from __future__ import annotations

from nemo_gdpo.platform import current_platform

current_platform()
