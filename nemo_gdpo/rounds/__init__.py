"""Rounds: sample, score, make pairs or groups, train, and again; each step a command on files."""
