"""Diversity and quality of sampled responses. Neither Megatron nor NeMo is imported here."""
