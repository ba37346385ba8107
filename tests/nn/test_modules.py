"""What is asked of models, and of the precision that they run in."""

from types import SimpleNamespace

import pytest
import torch

import tiny
from trl_tokenreward.nn.modules import computes_low


pytestmark = pytest.mark.any_trl

ON_GPU = SimpleNamespace(parameters=lambda: [SimpleNamespace(dtype=torch.float32, is_cuda=True)])


def test_weights_of_less_than_float32_compute_low():
    assert not computes_low(tiny.causal_lm())
    assert computes_low(tiny.causal_lm().to(torch.bfloat16))


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="before torch 2.9")
@pytest.mark.parametrize(("precision", "low"), [("tf32", True), ("ieee", False)])
def test_tf32_as_transformers_sets_it(precision, low, monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", precision)
    assert computes_low(ON_GPU) == low
    assert not computes_low(tiny.causal_lm())  # TF32 is CUDA's


@pytest.mark.parametrize(("precision", "low"), [("high", True), ("highest", False)])
def test_tf32_as_torch_had_it_set_before(precision, low):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert computes_low(ON_GPU) == low
    finally:
        torch.set_float32_matmul_precision(before)
