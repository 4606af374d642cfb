"""The head's gradient added straight to DDP's buffer gives what handing it to autograd gives.

On a CPU training never does so; here it is made to, under Megatron's own DDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_gdpo.platform import current_platform

current_platform()

import torch  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
)

from nemo_gdpo.logprobs import MainGrad, selected_logprobs  # noqa: E402
from nemo_gdpo.models import forward  # noqa: E402
from nemo_gdpo.models.builder import (  # noqa: E402
    ParallelLayout,
    build_gpt_chunks,
    transformer_config,
)
from nemo_gdpo.models.forward import HeadOptions  # noqa: E402
from nemo_gdpo.training.mesh import build_mesh, join_world, leave_world  # noqa: E402
from tests.models.megatron_parts import MODEL  # noqa: E402

LAYOUT = ParallelLayout(vocab_divisible_by=16)
TOKENS = torch.tensor([[5, 9, 3, 100, 7, 2], [8, 8, 1, 2, 0, 0]])
LABELS = torch.tensor([[-100, 3, 100, 7, 2, -100], [-100, 1, 2, -100, -100, -100]])
OPTIONS = HeadOptions(vocab_size=101, eos_id=2, chunk_tokens=3)


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    join_world(current_platform(), timeout_minutes=2)
    build_mesh(LAYOUT, current_platform(), seed=1)
    yield
    leave_world()


def ddp(*, tied: bool, overlap: bool) -> Any:
    """A model of 2 layers, the same each time, under DDP with float32 buffers."""
    platform = current_platform()
    model = replace(MODEL, tie_word_embeddings=tied)
    config = transformer_config(model, LAYOUT, "fp32", platform)
    (gpt,) = build_gpt_chunks(model, config, LAYOUT, platform, max_sequence_length=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    wrapped = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, overlap_grad_reduce=overlap
        ),
        module=gpt,
    )
    wrapped.zero_grad_buffer()
    return wrapped


def score(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(
        input_ids=tokens,
        position_ids=torch.arange(6).expand_as(tokens),
        attention_mask=None,
        labels=LABELS,
        output_processor=forward._head,
        output_processor_context=OPTIONS,
    )
    return output


def step(model: Any) -> None:
    """Two micro-batches, the gradients reduced after the second."""
    weights = torch.linspace(-1.0, 2.0, 12).view(6, 2)
    with model.no_sync():
        (score(model, TOKENS)[:, :2] * weights).sum().backward()
    (score(model, TOKENS.flip(1))[:, :2] * weights).sum().backward()
    model.finish_grad_sync()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.main_grad.clone() for name, p in model.module.named_parameters()}


def head_weight(model: Any) -> Any:
    gpt = model.module
    if gpt.share_embeddings_and_output_weights:
        return gpt.shared_embedding_or_output_weight()
    return gpt.output_layer.weight


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[MainGrad]:
    """Make the head add to the buffer, and keep what it was given."""
    found: list[MainGrad] = []

    def main_grad(weight: torch.Tensor) -> MainGrad | None:
        made = MainGrad.of(weight)
        if made is not None:
            found.append(made)
        return made

    monkeypatch.setattr(forward, "_main_grad", main_grad)
    return found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_autograd(
    tied: bool, overlap: bool, added: list[MainGrad], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parameters, over two steps: a tied embedding's own gradient is there too."""
    model = ddp(tied=tied, overlap=overlap)
    for _ in range(2):
        model.zero_grad_buffer()
        assert not head_weight(model).grad_added_to_main_grad
        step(model)
        assert head_weight(model).grad_added_to_main_grad
    found = gradients(model)
    assert len(added) == 4
    monkeypatch.setattr(forward, "_main_grad", lambda weight: None)
    other = ddp(tied=tied, overlap=overlap)
    step(other)
    for name, gradient in gradients(other).items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in model.module.parameters())


def test_without_gradients_the_buffer_is_left_alone(added: list[MainGrad]) -> None:
    model = ddp(tied=False, overlap=False)
    weight = head_weight(model)
    with torch.no_grad():
        score(model, TOKENS)
    assert added
    assert not weight.grad_added_to_main_grad
    assert (weight.main_grad == 0).all()


def test_a_cpu_hands_the_gradient_to_autograd() -> None:
    """Trajectories on a CPU are compared to the bit."""
    model = ddp(tied=False, overlap=False)
    step(model)
    assert not head_weight(model).grad_added_to_main_grad


@pytest.mark.parametrize(("device", "taken"), [("cuda:0", True), ("cpu", False)])
def test_a_gpu_adds_to_the_buffer(device: str, taken: bool) -> None:
    weight: Any = SimpleNamespace(
        device=torch.device(device), main_grad=torch.zeros(3, 2), grad_added_to_main_grad=False
    )
    assert (forward._main_grad(weight) is not None) == taken


def test_only_float32_buffers_of_ddp_count() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    assert MainGrad.of(weight) is None
    weight.main_grad = torch.zeros(3, 2)  # type: ignore[attr-defined]
    assert MainGrad.of(weight) is None, "no DDP that would read the flag"
    weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    assert MainGrad.of(weight) is not None
    weight.main_grad = torch.zeros(3, 2, dtype=torch.bfloat16)  # type: ignore[attr-defined]
    assert MainGrad.of(weight) is None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_autograd_is_handed_takes_no_memory(dtype: torch.dtype, tied: bool) -> None:
    """At 131,072 x 4,096 it would be 1 GiB, while activations take the most."""
    weight = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
    total = torch.full((3, 2), 7.0)
    vars(weight).update(main_grad=total, grad_added_to_main_grad=False, zero_out_wgrad=tied)
    target = MainGrad.of(weight)
    assert target is not None
    handed = target.added()
    assert (handed.shape, handed.dtype) == (weight.shape, dtype)
    if tied:
        assert handed.untyped_storage().nbytes() == dtype.itemsize
        assert torch.equal(handed, torch.zeros(3, 2, dtype=dtype))
    else:
        assert handed.data_ptr() == total.data_ptr()
        assert handed.is_contiguous()


def test_autograd_never_adds_to_the_buffers_bytes() -> None:
    """A gradient that DDP's hook did not drop would be added to, which is to say the buffer."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    target = MainGrad(weight, torch.zeros(3, 2))
    weight.grad = torch.zeros(3, 2)
    with pytest.raises(RuntimeError, match="beside its main gradient"):
        target.added()


def test_float64_does_not_fit_a_float32_buffer() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    target = MainGrad(weight, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"main_grad is torch\.float32"):
        selected_logprobs(
            torch.zeros(1, 2, dtype=torch.float64), weight, torch.zeros(1).long(), main_grad=target
        )
