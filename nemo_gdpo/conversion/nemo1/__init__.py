"""Import of `.nemo` archives that NeMo 1 or NeMo-Aligner wrote."""
