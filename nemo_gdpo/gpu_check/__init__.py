"""Acceptance test of a machine with GPUs: what only a GPU can show, in stages with time limits."""
