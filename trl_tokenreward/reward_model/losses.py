"""Losses and accuracies of the token reward model: pure functions of tensors.

Shapes: B rows, L tokens. `chosen` is the edit, `rejected` the original, which may have no edit. Every mask is 1 for the
tokens that count, or says how much each counts (as the severity of an error), and is applied where numbers are reduced,
so whatever stands in a masked place changes neither a loss nor a gradient. A mean is by these weights. Where nothing
counts a loss is 0, with a gradient of 0.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.masked import check_shapes, masked_mean, weighted_mean, weighted_sum, zero_masked


def sequence_ranking_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None, pair_mask: Tensor | None = None
) -> Tensor:
    r"""Bradley-Terry loss of two sequence scores, the mean over the pairs of

    $$ -\log \sigma(s(y^+) - s(y^-) - m) $$

    This is [`~trl.RewardTrainer`]'s loss.

    Args:
        chosen_scores (`Tensor`):
            Sequence scores of the chosen responses. Shape (B,).
        rejected_scores (`Tensor`):
            Sequence scores of the rejected responses. Shape (B,).
        margin (`Tensor`, *optional*):
            By how much each chosen response should win. Shape (B,).
        pair_mask (`Tensor`, *optional*):
            1 for the rows that are pairs, which all are if `None`. Shape (B,).

    Returns:
        `Tensor`: a scalar.
    """
    check_shapes("rejected_scores", rejected_scores, "chosen_scores", chosen_scores)
    difference = chosen_scores - rejected_scores
    if margin is not None:
        check_shapes("margin", margin, "chosen_scores", chosen_scores)
        difference = difference - margin
    if pair_mask is None:
        return -F.logsigmoid(difference).mean()
    check_shapes("pair_mask", pair_mask, "chosen_scores", chosen_scores)
    return masked_mean(-F.logsigmoid(zero_masked(difference, pair_mask)), pair_mask)


def edit_ranking_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_edit_mask: Tensor,
    rejected_edit_mask: Tensor,
    aggregation: Literal["mean", "sum"] = "mean",
) -> Tensor:
    r"""Bradley-Terry loss of the edited tokens alone, after Xu et al. (ACL 2024,
    https://huggingface.co/papers/2406.02756).

    With U(y) the edited tokens of a response, the mean over the pairs of

    $$ -\log \sigma\Bigl(\mathrm{agg}_{t \in U(y^+)} r_t - \mathrm{agg}_{t \in U(y^-)} r_t\Bigr) $$

    A side without edited tokens (a pure insertion or deletion, or a row of one side) counts 0: what was inserted must
    then score above 0, what was deleted or marked below. Rows without edited tokens on either side are ignored.

    Args:
        chosen_scores (`Tensor`):
            Token scores of the edited responses. Shape (B, L).
        rejected_scores (`Tensor`):
            Token scores of the original responses. Shape (B, L'), where L' may differ from L.
        chosen_edit_mask (`Tensor`):
            1 for tokens that were edited in. Shape (B, L).
        rejected_edit_mask (`Tensor`):
            1 for tokens that were edited out. Shape (B, L').
        aggregation (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` of the edited tokens' scores. With `"sum"` a long edit moves further than a short one.

    Returns:
        `Tensor`: a scalar.
    """
    check_shapes("chosen_edit_mask", chosen_edit_mask, "chosen_scores", chosen_scores)
    check_shapes("rejected_edit_mask", rejected_edit_mask, "rejected_scores", rejected_scores)
    if chosen_scores.shape[0] != rejected_scores.shape[0]:
        raise ValueError(
            f"`chosen_scores` has shape {tuple(chosen_scores.shape)} and `rejected_scores` "
            f"{tuple(rejected_scores.shape)}: they must have as many rows."
        )
    if aggregation not in ("mean", "sum"):
        raise ValueError(f"`aggregation` must be 'mean' or 'sum', not {aggregation!r}.")
    aggregate = weighted_mean if aggregation == "mean" else weighted_sum
    difference = aggregate(chosen_scores, chosen_edit_mask, -1) - aggregate(rejected_scores, rejected_edit_mask, -1)
    has_edits = chosen_edit_mask.bool().any(-1) | rejected_edit_mask.bool().any(-1)
    return masked_mean(-F.logsigmoid(difference), has_edits)


def edit_classification_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, chosen_edit_mask: Tensor, rejected_edit_mask: Tensor
) -> Tensor:
    r"""Binary cross-entropy that tells edited-in tokens from edited-out ones, as the discriminator of TLCR does
    (https://huggingface.co/papers/2407.16574).

    With U(y) the edited tokens of a response, the mean over all edited tokens of the batch of

    $$ -\log \sigma(r_t) \text{ for } t \in U(y^+), \qquad -\log \sigma(-r_t) \text{ for } t \in U(y^-) $$

    A score is the log-odds that an annotator would insert this token rather than delete it; 0 means undecided.

    Args:
        chosen_scores (`Tensor`):
            Token scores of the edited responses. Shape (B, L).
        rejected_scores (`Tensor`):
            Token scores of the original responses. Shape (B', L').
        chosen_edit_mask (`Tensor`):
            1 for tokens that were edited in. Shape (B, L).
        rejected_edit_mask (`Tensor`):
            1 for tokens that were edited out. Shape (B', L').

    Returns:
        `Tensor`: a scalar.
    """
    check_shapes("chosen_edit_mask", chosen_edit_mask, "chosen_scores", chosen_scores)
    check_shapes("rejected_edit_mask", rejected_edit_mask, "rejected_scores", rejected_scores)
    # Zeroed before the sigmoid and not only after it: the gradient of a NaN that is masked later would still be NaN.
    edited_in = zero_masked(chosen_scores, chosen_edit_mask)
    edited_out = zero_masked(rejected_scores, rejected_edit_mask)
    total = weighted_sum(-F.logsigmoid(edited_in), chosen_edit_mask)
    total = total + weighted_sum(-F.logsigmoid(-edited_out), rejected_edit_mask)
    whole = chosen_edit_mask.sum() + rejected_edit_mask.sum()
    return total / torch.where(whole > 0, whole, 1)


def unchanged_score_penalty(scores: Tensor, unchanged_mask: Tensor) -> Tensor:
    r"""Mean squared score of the tokens that no edit touched, which pulls them to 0:

    $$ \frac{1}{|N|} \sum_{t \in N} r_t^2 $$

    Args:
        scores (`Tensor`):
            Token scores. Shape (B, L).
        unchanged_mask (`Tensor`):
            1 for unchanged completion tokens. Shape (B, L).

    Returns:
        `Tensor`: a scalar.
    """
    check_shapes("unchanged_mask", unchanged_mask, "scores", scores)
    return weighted_mean(zero_masked(scores, unchanged_mask).square(), unchanged_mask)


def unchanged_classification_loss(scores: Tensor, unchanged_mask: Tensor) -> Tensor:
    r"""Cross-entropy of the tokens that no edit touched as tokens that are right, like those edited in:

    $$ \frac{1}{|N|} \sum_{t \in N} -\log \sigma(r_t) $$

    An annotator who edits minimally has read these tokens and kept them, which also is a judgement.

    Args:
        scores (`Tensor`):
            Token scores. Shape (B, L).
        unchanged_mask (`Tensor`):
            1 for unchanged completion tokens. Shape (B, L).

    Returns:
        `Tensor`: a scalar.
    """
    check_shapes("unchanged_mask", unchanged_mask, "scores", scores)
    return weighted_mean(-F.logsigmoid(zero_masked(scores, unchanged_mask)), unchanged_mask)
