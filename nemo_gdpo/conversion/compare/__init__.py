"""Comparison of two checkpoints: tensors bit for bit, then logits on the same prompts."""
