"""Numbers that are NaN, infinite or too large are found and named."""

import math

import pytest
import torch
from torch import nn

from trl_tokenreward.nn.finite import not_finite, weights_not_finite


pytestmark = pytest.mark.any_trl

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
JUNK = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.inf, -math.inf]])


def test_masked_places_may_hold_anything():
    assert not_finite("here", {"a score": JUNK, "a total": torch.zeros(2), "a loss": torch.tensor(1.0)}, MASK) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("value", "fault"), [(math.nan, "nan, not a finite"), (-math.inf, "-inf, not a finite")])
def test_the_first_one_is_named(dtype, value, fault):
    scores = JUNK.to(dtype).clone()
    scores[1, 0] = value
    message = not_finite("Update 3", {"a value": torch.zeros(2), "a score": scores}, MASK, rows=[7, 9])
    assert message.startswith(f"Update 3, row 9: a score is {fault} number. Look for")


def test_masks_are_of_numbers_of_their_shape_alone():
    totals = torch.tensor([0.0, math.nan])
    assert not_finite("here", {"a total": totals}, MASK).startswith("here, row 1: a total is nan")
    assert not_finite("here", {"a loss": torch.tensor(math.inf)}, MASK).startswith("here: a loss is inf")


def test_what_has_no_square_is_too_large():
    assert not_finite("here", {"a reward": torch.tensor([1e17])}) is None
    assert "row 0: a reward is 1e+38, too large for its square" in not_finite("", {"a reward": torch.tensor([1e38])})


def test_weights_that_are_trained_count():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert weights_not_finite(model, "here") is None
    model[1].bias.data[1] = math.inf
    assert "here: the weight 1.bias has NaN or infinite numbers" in weights_not_finite(model, "here")
    model[1].requires_grad_(False)
    assert weights_not_finite(model, "here") is None
