"""Reductions over masked tensors, against values worked out by hand."""

import pytest
import torch

from padded import MASK, tensor, with_junk
from trl_tokenreward.nn import masked as F


pytestmark = pytest.mark.any_trl


def test_masked_mean_and_sum():
    values = tensor([1, 2, 3, 9], [5, 7, 9, 9])
    assert F.masked_sum(values, MASK).item() == 18
    assert F.masked_mean(values, MASK).item() == pytest.approx(3.6)
    assert F.masked_mean(values, MASK, dim=1).tolist() == [2, 6]
    assert F.masked_mean(with_junk(values), MASK).item() == pytest.approx(3.6)
    assert F.masked_mean(values, torch.zeros_like(MASK)).item() == 0


def test_masked_whiten():
    # 1, 2, 3, 5, 9: mean 4, squared deviations 9 + 4 + 1 + 1 + 25 = 40, unbiased variance 10.
    values = tensor([1, 2, 3, 0], [5, 9, 0, 0])
    scale = 10**-0.5
    expected = tensor([-3 * scale, -2 * scale, -scale, 0], [scale, 5 * scale, 0, 0])
    torch.testing.assert_close(F.masked_whiten(values, MASK), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(F.masked_whiten(with_junk(values), MASK), expected, rtol=0, atol=1e-8)
    kept = F.masked_whiten(values, MASK, shift_mean=False)
    assert F.masked_mean(kept, MASK).item() == pytest.approx(4)


def test_whitening_a_single_token_gives_zero_and_not_nan():
    assert F.masked_whiten(tensor([3.0, 5.0]), torch.tensor([[1, 0]])).tolist() == [[0, 0]]
