"""Preference pairs out of sampled answers: scores, a rule that picks two, what was left out."""
