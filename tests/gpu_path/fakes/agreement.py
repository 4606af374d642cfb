"""Whether ranks that ran one after the other would have understood each other.

Every rank wrote down what it asked of its process groups. Two ranks of a group have to ask the
same, in the same order, with the same sizes; and all together have to find an order in which
everything can be done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

from tests.gpu_path.fakes.calls import Call

Calls = Mapping[int, Sequence[Call]]
"""Rank -> what it asked, in order."""
MESSAGES = ("send", "recv")


def disagreements(calls: Calls) -> list[str]:
    """One line for every group in which two of the ranks asked for different things, and which.

    Messages are compared in pairs: what one sends, the other has to receive.
    """
    found = []
    for group, members in _shared_groups(calls).items():
        asked = {rank: _asked(calls[rank], group) for rank in members}
        first = members[0]
        for rank in members[1:]:
            found += _first_difference(group, (first, asked[first]), (rank, asked[rank]))
    for one, other in _pairs(calls):
        sent, received = _messages(calls[one], "send", other), _messages(calls[other], "recv", one)
        found += _first_difference((one, other), (one, sent), (other, received))
    return found


def _shared_groups(calls: Calls) -> dict[tuple[int, ...], list[int]]:
    """Groups that at least two of the ranks are in, and which of them."""
    groups = {call.ranks for asked in calls.values() for call in asked if call.kind not in MESSAGES}
    members = {group: [rank for rank in group if rank in calls] for group in sorted(groups)}
    return {group: ranks for group, ranks in members.items() if len(ranks) > 1}


def _asked(calls: Sequence[Call], group: tuple[int, ...]) -> list[str]:
    return [_name(call) for call in calls if call.ranks == group and call.kind not in MESSAGES]


def _name(call: Call) -> str:
    return f"{call.kind} of {'+'.join(map(str, call.sizes))} {call.dtype} {call.detail}".strip()


def _pairs(calls: Calls) -> list[tuple[int, int]]:
    return [(one, other) for one in calls for other in calls if one != other]


def _messages(calls: Sequence[Call], kind: str, peer: int) -> list[str]:
    return [
        f"message of {call.sizes[0]} {call.dtype}"
        for call in calls
        if call.kind == kind and call.ranks[1] == peer
    ]


def _first_difference(
    group: tuple[int, ...], one: tuple[int, list[str]], other: tuple[int, list[str]]
) -> list[str]:
    nothing = "nothing more"
    longest = max(len(one[1]), len(other[1]))
    for index in range(longest):
        a, b = (asked[index] if index < len(asked) else nothing for _, asked in (one, other))
        if a != b:
            return [
                f"group {list(group)}, call {index}: rank {one[0]} asks for {a}, rank {other[0]} "
                f"for {b}"
            ]
    return []


def stuck(calls: Calls) -> list[str]:
    """What every rank waits for at the end, if they cannot all finish; empty if they can.

    A collective is done once all its ranks, of those that are here, have come to it; a message once
    both have. Ranks wait for each call before the next, and for all messages of a batch together,
    which is stricter than NCCL's streams are. What goes to ranks that are not here is passed over.
    """
    queues = {rank: _steps(asked, calls) for rank, asked in calls.items()}
    while any(queues.values()):
        if not _advance(queues):
            return [
                f"rank {rank} waits in {steps[0][0].kind} with {list(steps[0][0].ranks)}"
                for rank, steps in queues.items()
                if steps
            ]
    return []


def _steps(asked: Sequence[Call], here: Calls) -> list[list[Call]]:
    """What a rank waits for, one after the other: single calls, or batches of messages."""
    kept = [call for call in asked if sum(rank in here for rank in call.ranks) > 1]
    numbered = enumerate(kept)

    def batch(item: tuple[int, Call]) -> object:
        index, call = item
        return call.detail if call.kind in MESSAGES and call.detail else index

    return [[call for _, call in group] for _, group in groupby(numbered, key=batch)]


def _advance(queues: dict[int, list[list[Call]]]) -> bool:
    """Do all that can be done now; False if there was nothing."""
    moved = False
    waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for rank, steps in queues.items():
        for call in list(steps[0]) if steps else []:
            if call.kind not in MESSAGES:
                waiting[call.ranks].append(rank)
            elif _meet(queues, rank, call):
                moved = True
    for group, ranks in waiting.items():
        if set(ranks) == {rank for rank in group if rank in queues}:
            moved = True
            for rank in ranks:
                queues[rank].pop(0)
    for steps in queues.values():
        if steps and not steps[0]:
            steps.pop(0)
    return moved


def _meet(queues: dict[int, list[list[Call]]], rank: int, call: Call) -> bool:
    """Deliver a message, if the other rank has come to its end of it, too."""
    peer = call.ranks[1]
    wanted = "recv" if call.kind == "send" else "send"
    if not queues[peer]:
        return False
    for other in queues[peer][0]:
        if other.kind == wanted and other.ranks[1] == rank:
            queues[peer][0].remove(other)
            queues[rank][0].remove(call)
            return True
    return False
