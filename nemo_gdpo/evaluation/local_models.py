"""Around commands that load models for scores: from the disk alone, and with their packages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from nemo_gdpo.errors import UserError


@contextlib.contextmanager
def local_models() -> Iterator[None]:
    """In the block nothing is downloaded, and a package that is missing is a mistake of the setup.

    Raises:
        UserError: a package of the extra `evaluate` is not installed.
    """
    # Nothing here is ever downloaded: all models are directories.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "nemo_gdpo":
            raise
        raise UserError(
            f"the package {error.name} is not installed; install nemo_gdpo with the extra evaluate"
        ) from None
