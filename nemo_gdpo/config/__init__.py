"""Typed configuration: sections, presets, composition, and every check that needs no GPU."""
