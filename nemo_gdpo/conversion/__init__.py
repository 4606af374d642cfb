"""Weights in and out: Hugging Face directories <-> Megatron distributed checkpoints, exact.

A family (`families/`) is a config reader and a table of names; one engine walks every table both
ways, one tensor at a time.
"""
