"""Several worlds of ranks, one after the other, in the same processes.

All of them meet in one store, each under a prefix of its own: a port for each would have to be free
long after it was chosen. Megatron keeps some of a run's settings in the environment.
"""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from nemo_gdpo.config.checks_layers import VARIABLES

_numbers = itertools.count()


def meet() -> Any:
    """Open the store; to be held for as long as worlds are joined."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    first = os.environ["RANK"] == "0"
    store = TCPStore(host, port, is_master=first, wait_for_workers=False)

    def prefixed(*_: Any, **__: Any) -> Store:
        return PrefixStore(f"world {next(_numbers)}", store)

    # `torch.distributed.rendezvous` is a function, too, which hides the module.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    rendezvous._create_c10d_store = prefixed
    return store


def begin() -> None:
    """Ready the environment for the next world, as that of a new process would be."""
    for name in VARIABLES:
        os.environ.pop(name, None)
