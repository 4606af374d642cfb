"""Preference alignment on Megatron: GFlowNet-DPO, DPO with an offset, active-query DPO."""

from __future__ import annotations

__version__ = "0.1.0"
