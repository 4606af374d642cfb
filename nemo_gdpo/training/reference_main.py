"""`nemo-gdpo reference`: compute the reference's log-probs ahead of training, on the same mesh."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from nemo_gdpo.errors import EXIT_DONE


def _rank_main(overrides: Sequence[str]) -> int:
    from nemo_gdpo.training.main import guarded, run_with_hydra

    def task(cfg: DictConfig) -> int:
        def reference() -> int:
            from nemo_gdpo.training.run import assemble, compute_reference

            compute_reference(assemble(cfg))
            return EXIT_DONE

        return guarded(reference)

    return run_with_hydra(overrides, task)


def main(argv: Sequence[str]) -> int:
    """Check the configuration, then join or start ranks as `train` does."""
    from nemo_gdpo.cli import start

    return start(list(argv), "nemo_gdpo.training.reference_main", _rank_main)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(_rank_main(sys.argv[1:]))
