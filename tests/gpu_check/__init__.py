"""Tests of the acceptance test for machines with GPUs, as far as a CPU takes them."""
