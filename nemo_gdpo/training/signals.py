"""Stop at the next step boundary when the scheduler asks for it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers SIGTERM and SIGUSR1; `agreed` tells all ranks alike whether any rank got one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.received: int | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Collective over all ranks: has any of them been asked to stop?

        Ranks receive a signal at different moments; leaving the loop at different steps would hang.
        """
        flag = torch.tensor([self.received or 0], dtype=torch.int32, device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
