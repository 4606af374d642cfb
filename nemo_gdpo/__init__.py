"""Preference alignment of Llama and Gemma models on Megatron: GFlowNet-DPO, offset DPO, active DPO."""

from __future__ import annotations

__version__ = "0.1.0"
