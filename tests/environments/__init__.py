"""Locked environments: their locks, who owns which file, making them, and NVIDIA's image."""
