"""One outcome for all ranks: nobody continues, or waits, when somebody has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from nemo_gdpo.errors import UserError

T = TypeVar("T")


def on_every_rank(action: Callable[[], T]) -> T:
    """Run `action` here; raise on every rank if it failed on any. Collective.

    Raises:
        UserError: the input is wrong on a rank, which is named unless all say the same.
        RuntimeError: it failed in another way.
    """
    result: list[T] = []
    failure: tuple[bool, str] | None = None
    cause: Exception | None = None
    try:
        result.append(action())
    except (UserError, OSError) as error:
        failure, cause = (True, str(error)), error
    except Exception as error:  # noqa: BLE001 - the others wait for this rank
        failure, cause = (False, f"{type(error).__name__}: {error}"), error
    failures: list[tuple[bool, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    failed = [(rank, found) for rank, found in enumerate(failures) if found is not None]
    if not failed:
        return result[0]
    rank, (is_input, reason) = failed[0]
    where = "" if len(set(failures)) == 1 else f"rank {rank}: "
    raise (UserError if is_input else RuntimeError)(f"{where}{reason}") from cause
