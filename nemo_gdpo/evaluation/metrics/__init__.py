"""Metrics of the responses to a prompt: one row of `table` for each."""
