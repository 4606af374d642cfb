"""Compares the objectives by quality and diversity; `__main__.py` is the program."""
