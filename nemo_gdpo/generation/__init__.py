"""Sampling at scale: prompts x samples x a sweep, each sample with its own seed."""

from __future__ import annotations
