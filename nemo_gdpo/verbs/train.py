"""`nemo-gdpo train` and `nemo-gdpo reference`."""

from __future__ import annotations

from nemo_gdpo.config.request import Request
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.verbs.start import start


def train(request: Request) -> int:
    """Check everything, then join the world that is there or start the ranks the mesh needs."""
    return start(request.compose(TRAIN).plain, "train")


def reference(request: Request) -> int:
    """Compute the reference's log-probs ahead of training, on the mesh of the training run."""
    return start(request.compose(TRAIN).plain, "reference")
