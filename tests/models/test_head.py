"""What reaches the language-model head, and which columns come out of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nemo_gdpo.platform import current_platform

current_platform()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from nemo_gdpo.models import forward  # noqa: E402
from nemo_gdpo.models.forward import HeadOptions  # noqa: E402


class _OneRank:
    @staticmethod
    def size() -> int:
        return 1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The hidden states that selected_logprobs is given."""
    found: list[torch.Tensor] = []
    real = forward.selected_logprobs

    def spy(hidden_TH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(hidden_TH)
        return real(hidden_TH, *args, **kwargs)

    monkeypatch.setattr(forward, "selected_logprobs", spy)
    monkeypatch.setattr(
        forward.parallel_state, "get_tensor_model_parallel_group", lambda: _OneRank()
    )
    return found


def _run(options: HeadOptions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of five positions, three labelled: hidden [S, B, H], weight, output [T, C]."""
    generator = torch.Generator().manual_seed(0)
    hidden_SBH = torch.randn(5, 2, 4, generator=generator)
    weight_VH = torch.randn(7, 4, generator=generator)
    labels = torch.tensor([[-100, 3, 6, -100, -100], [-100, -100, -100, 1, -100]])
    out_TC = forward._head(
        hidden_states=hidden_SBH,
        output_layer=SimpleNamespace(weight=weight_VH),
        output_weight=None,
        labels=labels,
        context=options,
        config=SimpleNamespace(sequence_parallel=False),
    )
    return hidden_SBH, weight_VH, out_TC


def test_only_labelled_positions_reach_the_head(seen: list[torch.Tensor]) -> None:
    """Prompt and padding positions would cost a vocabulary of logits each."""
    hidden_SBH, _, out_TC = _run(HeadOptions(vocab_size=7))
    wanted = torch.stack([hidden_SBH[1, 0], hidden_SBH[2, 0], hidden_SBH[3, 1]])
    assert torch.equal(seen[0], wanted)
    assert out_TC.shape == (3, 1)


def test_labels_are_looked_for_once(seen: list[torch.Tensor]) -> None:
    """A GPU is waited for each time: their number decides the shapes of what follows."""
    del seen
    found: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names():
        _run(HeadOptions(vocab_size=7, eos_id=6))
    assert [name for name in found if "nonzero" in name] == ["aten.nonzero.default"]
    assert not [name for name in found if name.startswith("aten.index.Tensor")]


def test_columns_are_label_eos_and_tempered_eos(seen: list[torch.Tensor]) -> None:
    """Row order, and log-softmax over the true vocabulary of six."""
    del seen
    hidden_SBH, weight_VH, out_TC = _run(HeadOptions(vocab_size=7, eos_id=6, eos_temperature=0.5))
    logits = torch.stack([hidden_SBH[1, 0], hidden_SBH[2, 0], hidden_SBH[3, 1]]) @ weight_VH.T
    logps, tempered = logits.log_softmax(-1), (logits / 0.5).log_softmax(-1)
    wanted = torch.stack([logps[[0, 1, 2], [3, 6, 1]], logps[:, 6], tempered[:, 6]], dim=1)
    assert torch.allclose(out_TC, wanted, atol=1e-6)
    # The second token is EOS itself: label and EOS columns agree there and nowhere else.
    assert (out_TC[:, 0] == out_TC[:, 1]).tolist() == [False, True, False]


def test_padding_of_the_vocabulary_is_masked(seen: list[torch.Tensor]) -> None:
    """With seven rows of which four are real, labels must be below four."""
    del seen
    with pytest.raises(ValueError, match="label"):
        _run(HeadOptions(vocab_size=4))
