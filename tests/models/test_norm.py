"""RMSNorm is transformers' norm of Llama, marked for sequence parallelism."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nemo_gdpo.models.norm import RMSNorm
from tests.models.megatron_parts import transformer_config


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_values_and_gradients(precision: str, eps: float) -> None:
    config = transformer_config(precision)
    own, other = RMSNorm(config, 32, eps=eps), LlamaRMSNorm(32, eps=eps)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        own.weight.copy_(torch.randn(32, generator=draw))
        other.weight = torch.nn.Parameter(own.weight.detach().clone())
    x = torch.randn(5, 2, 32, generator=draw).to(config.params_dtype) * 0.1
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(value) for norm, value in zip((own, other), inputs, strict=True)]
    assert outputs[0].dtype == config.params_dtype
    # Bit-equal: bf16 checkpoints were trained with this order of casting and scaling.
    assert torch.equal(*outputs)
    for output in outputs:
        output.float().square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(own.weight.grad, other.weight.grad)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_weight_says_whether_its_gradient_is_partial(sequence_parallel: bool) -> None:
    config = transformer_config(layout={"tensor": 2, "sequence_parallel": sequence_parallel})
    assert RMSNorm(config, 32).weight.sequence_parallel is sequence_parallel


def test_refusals() -> None:
    config = transformer_config()
    with pytest.raises(ValueError, match="zero-centred"):
        RMSNorm(config, 32, zero_centered_gamma=True)
    config.layernorm_zero_centered_gamma = True
    with pytest.raises(ValueError, match="zero-centred"):
        RMSNorm(config, 32)
    config.layernorm_zero_centered_gamma = False
    config.normalization = "LayerNorm"
    with pytest.raises(ValueError, match="RMSNorm, not LayerNorm"):
        RMSNorm(config, 32)
