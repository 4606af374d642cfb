"""Verbs of the command line that need several packages at once."""
