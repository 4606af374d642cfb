"""Fake tensors keep numbers as long as they are made of numbers alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.gpu_path.fakes.numbers import Answer, Numbers, place


@pytest.fixture
def numbers() -> Iterator[Numbers]:
    """Every tensor of the test is fake, and one function gets an answer."""
    mode = Numbers((Answer("ask_for_the_norm", 1.0),))
    with FakeTensorMode(allow_non_fake_inputs=True), mode:
        yield mode


def unknown(*shape: int) -> torch.Tensor:
    return torch.empty(*shape)


def test_what_is_computed_from_numbers_has_numbers(numbers: Numbers) -> None:
    lengths = torch.tensor([3, 5])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    assert isinstance(mask, FakeTensor)
    assert int(mask.sum()) == 8
    assert mask.sum(dim=1).tolist() == [3, 5]


def test_a_mask_picks_as_many_as_it_has(numbers: Numbers) -> None:
    labels = torch.tensor([[-100, 7, 8], [9, -100, -100]])
    hidden = unknown(2, 3, 16).requires_grad_()
    picked = hidden[labels >= 0]
    assert picked.shape == (3, 16)
    torch.autograd.backward([picked.sum()])
    assert hidden.grad is not None
    assert hidden.grad.shape == (2, 3, 16)
    assert labels[labels >= 0].tolist() == [7, 8, 9]


def test_what_meets_a_tensor_without_numbers_has_none(numbers: Numbers) -> None:
    counts = torch.ones(4)
    assert float((counts * 2).sum()) == 8.0
    with pytest.raises(RuntimeError, match="depends on weights or activations"):
        float((counts * unknown(4)).sum())


def test_numbers_are_lost_where_others_are_written_over_them(numbers: Numbers) -> None:
    table = torch.zeros(2, 3)
    row = table[0]
    row[1] = 5.0
    assert table.tolist() == [[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]
    row.add_(unknown(3))
    with pytest.raises(RuntimeError, match="depends on weights or activations"):
        float(table.sum())


def test_only_who_is_named_gets_an_answer(numbers: Numbers) -> None:
    def ask_for_the_norm() -> float:
        return float(unknown(3).norm())

    assert ask_for_the_norm() == 1.0


def test_writes_are_noted_with_their_places(numbers: Numbers) -> None:
    buffer = unknown(10)
    numbers.writes.clear()
    buffer[4:6].add_(1.0)
    own = place(buffer)
    assert own.stop - own.start == 10
    assert [write for write in numbers.writes if write.storage == own.storage] == [
        own._replace(start=4, stop=6)
    ]
