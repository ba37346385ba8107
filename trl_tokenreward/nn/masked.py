"""Reductions over the real entries of padded tensors."""

import torch
from torch import Tensor


def check_shapes(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}, but `{like_name}` has shape {tuple(like.shape)}.")


def zero_masked(values: Tensor, mask: Tensor) -> Tensor:
    # `where`, not a product: infinities and NaN in masked places must not survive.
    return torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `values` where `mask` is 1, over `dim` or over everything. `values` and `mask` have one shape."""
    check_shapes("mask", mask, "values", values)
    values = zero_masked(values, mask)
    return values.sum() if dim is None else values.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is 1, over `dim` or over everything; 0 where nothing counts."""
    total = masked_sum(values, mask, dim)
    count = mask.sum() if dim is None else mask.sum(dim)
    return total / count.clamp(min=1)


def weighted_sum(values: Tensor, weights: Tensor, dim: int | None = None) -> Tensor:
    """[`masked_sum`] where a place may weigh more or less than 1. A mask is such weights."""
    products = zero_masked(values, weights) * weights
    return products.sum() if dim is None else products.sum(dim)


def weighted_mean(values: Tensor, weights: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` by their weights, over `dim` or over everything; 0 where all weigh 0."""
    whole = weights.sum() if dim is None else weights.sum(dim)
    return weighted_sum(values, weights, dim) / torch.where(whole > 0, whole, 1)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale `values` to unit variance over the places where `mask` is 1, which become 0 elsewhere.

    The variance is the unbiased one. With fewer than two places that count there is no variance: the values are then
    only shifted, so that a single trained token gets the advantage 0 and not NaN.

    Args:
        values (`Tensor`):
            Shape (B, T).
        mask (`Tensor`):
            Shape (B, T).
        shift_mean (`bool`, *optional*, defaults to `True`):
            If `True`, the mean becomes 0; if `False`, it is kept.
        eps (`float`, *optional*, defaults to `1e-8`):
            Added to the variance.
    """
    mean = masked_mean(values, mask)
    centred = zero_masked(values - mean, mask)
    count = mask.sum()
    if count > 1:
        variance = centred.square().sum() / (count - 1)
        centred = centred * torch.rsqrt(variance + eps)
    return centred if shift_mean else zero_masked(centred + mean, mask)
