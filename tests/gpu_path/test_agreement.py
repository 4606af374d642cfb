"""Ranks that would not understand each other are found out."""

from __future__ import annotations

from tests.gpu_path.fakes.agreement import disagreements, stuck
from tests.gpu_path.fakes.calls import Call


def reduce(*ranks: int, size: int = 8) -> Call:
    return Call("all_reduce", ranks, (size,), "float32", "SUM")


def send(source: int, target: int, batch: str = "", size: int = 8) -> Call:
    return Call("send", (source, target), (size,), "bfloat16", batch)


def receive(target: int, source: int, batch: str = "", size: int = 8) -> Call:
    return Call("recv", (target, source), (size,), "bfloat16", batch)


def test_equal_calls_are_in_order() -> None:
    calls = {rank: [reduce(0, 1), reduce(0, 1, size=3)] for rank in (0, 1)}
    assert disagreements(calls) == []
    assert stuck(calls) == []


def test_another_size_is_named() -> None:
    calls = {0: [reduce(0, 1), reduce(0, 1)], 1: [reduce(0, 1), reduce(0, 1, size=3)]}
    assert disagreements(calls) == [
        "group [0, 1], call 1: rank 0 asks for all_reduce of 8 float32 SUM, rank 1 for all_reduce "
        "of 3 float32 SUM"
    ]


def test_a_missing_call_is_named_and_waited_for() -> None:
    calls = {0: [reduce(0, 1), reduce(0, 1)], 1: [reduce(0, 1)]}
    assert disagreements(calls) == [
        "group [0, 1], call 1: rank 0 asks for all_reduce of 8 float32 SUM, rank 1 for nothing more"
    ]
    assert stuck(calls) == ["rank 0 waits in all_reduce with [0, 1]"]


def test_groups_that_agree_can_wait_in_a_circle() -> None:
    calls = {
        0: [reduce(0, 1), reduce(0, 2)],
        1: [reduce(1, 2), reduce(0, 1)],
        2: [reduce(0, 2), reduce(1, 2)],
    }
    assert disagreements(calls) == []
    assert len(stuck(calls)) == 3


def test_ranks_that_are_not_here_are_not_waited_for() -> None:
    calls = {0: [reduce(0, 4), reduce(0, 1, 5)], 1: [reduce(1, 6), reduce(0, 1, 5)]}
    assert disagreements(calls) == []
    assert stuck(calls) == []


def test_a_message_of_another_size_is_named() -> None:
    calls = {0: [send(0, 1)], 1: [receive(1, 0, size=4)]}
    assert disagreements(calls) == [
        "group [0, 1], call 0: rank 0 asks for message of 8 bfloat16, rank 1 for message of 4 "
        "bfloat16"
    ]


def test_messages_of_a_batch_pass_each_other() -> None:
    batched = {
        0: [send(0, 1, "1"), receive(0, 1, "1"), reduce(0, 1)],
        1: [send(1, 0, "1"), receive(1, 0, "1"), reduce(0, 1)],
    }
    assert disagreements(batched) == []
    assert stuck(batched) == []
    single = {
        0: [send(0, 1), receive(0, 1)],
        1: [send(1, 0), receive(1, 0)],
    }
    assert stuck(single) == ["rank 0 waits in send with [0, 1]", "rank 1 waits in send with [1, 0]"]
