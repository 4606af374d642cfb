"""The thin classes: one a paper, under the names that NeMo-Aligner's users look for."""

from __future__ import annotations

from typing import ClassVar

from nemo_gdpo.nemo.model import MegatronGPTPreferenceModel


class MegatronGPTDPOModel(MegatronGPTPreferenceModel):
    """Direct preference optimisation (Rafailov et al. 2023), label-smoothed, or IPO."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"dpo", "ipo"})


class MegatronGPTGDPOModel(MegatronGPTPreferenceModel):
    """GFlowNet-DPO (Kwon et al., EMNLP 2024)."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"gdpo"})


class MegatronGPTODPOModel(MegatronGPTPreferenceModel):
    """DPO with an offset (Amini et al. 2024)."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"odpo"})


class MegatronGPTADPOModel(MegatronGPTPreferenceModel):
    """Active-query DPO (Ji et al. 2024)."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"adpo"})


NAMED_CLASSES: tuple[type[MegatronGPTPreferenceModel], ...] = (
    MegatronGPTDPOModel,
    MegatronGPTGDPOModel,
    MegatronGPTODPOModel,
    MegatronGPTADPOModel,
)


def model_class(objective: str) -> type[MegatronGPTPreferenceModel]:
    """The class for a value of the `objective` key: the paper's own, or the one they share."""
    for named in NAMED_CLASSES:
        if objective in named.objective_names:
            return named
    return MegatronGPTPreferenceModel
