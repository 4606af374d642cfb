"""A reference that is not what training starts from: `reference_model`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.training.adapter_start import AdapterStart
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.model_source import ModelSource, open_source


def open_reference(config: RunConfig, start: AdapterStart, mesh: Mesh) -> ModelSource | None:
    """Open the model that `reference_model` names, None without one. Collective.

    Where it is another model than training starts from, it is said that step 0 checks nothing.

    Raises:
        UserError: on every rank, also when it is not of the policy's architecture.
    """
    if config.reference_model is None:
        return None
    other = open_source(
        config.reference_model, mesh,
        divisible_by=config.model.make_vocab_size_divisible_by,
        cache_converted=config.model.cache_converted, key="reference_model",
    )  # fmt: skip
    ours, theirs = start.source.model_config.to_dict(), other.model_config.to_dict()
    differing = [name for name, value in ours.items() if theirs.get(name) != value]
    if differing:
        name = differing[0]
        error = UserError(
            f"reference_model: {other.name} has {name} {theirs.get(name)}, and "
            f"model.restore_from_path {ours[name]}; give two models of one architecture"
        )
        error.agreed = True
        raise error
    if mesh.is_main and other.fingerprint != start.fingerprint:
        print(
            f"reference_model: {other.name} is another model than training starts from; the losses "
            "of step 0 are not compared with those of equal models",
            flush=True,
        )
    return other


@contextlib.contextmanager
def being_reference(
    model: PreferenceModel,
    start: AdapterStart,
    other: ModelSource | None,
    caches: Sequence[Path],
) -> Iterator[None]:
    """In the block a model has the reference's weights, if a cache is missing. Collective.

    A block that is left by an error ends the run: the weights stay as they are.

    Args:
        model: on the mesh, with the weights that training starts from.
        start: those.
        other: the reference's; None: the same.
        caches: directories of its log-probs.
    """
    is_other = other is not None and other.fingerprint != start.fingerprint
    if other is None or not is_other:
        yield
        return
    if from_main_rank("looking for the reference", lambda: all(d.exists() for d in caches)):
        yield
        return
    other.load_into(model)
    with model.adapters_off():
        yield
    start.source.load_into(model)
    start.load_into(model)
