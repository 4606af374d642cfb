"""Locked environments: what they hold, how they are made, and what is checked about them.

Standard library only, and relative imports: `tools/environment.py` runs before anything is
installed. `ngc.py` alone also uses `packaging`, which NVIDIA's image has.
"""
