"""Losses and accuracies of the token reward model: pure functions of tensors.

Shapes: B pairs, L tokens. `chosen` is the edit, `rejected` the original. Every mask is 1 for the tokens that count and is
applied where numbers are reduced, so whatever stands in a masked place changes neither a loss nor a gradient. Where
nothing counts a loss is 0, with a gradient of 0.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ppo.functional import masked_mean, masked_sum


def _check_mask(name: str, mask: Tensor, scores_name: str, scores: Tensor) -> None:
    if mask.shape != scores.shape:
        raise ValueError(
            f"`{name}` has shape {tuple(mask.shape)}, but `{scores_name}` has shape {tuple(scores.shape)}."
        )


def sequence_ranking_loss(chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None) -> Tensor:
    r"""Bradley-Terry loss of two sequence scores, the mean over the pairs of

    $$ -\log \sigma(s(y^+) - s(y^-) - m) $$

    This is [`~trl.RewardTrainer`]'s loss, which [`TokenRewardTrainer`] takes from there.

    Args:
        chosen_scores (`Tensor`):
            Sequence scores of the chosen responses. Shape (B,).
        rejected_scores (`Tensor`):
            Sequence scores of the rejected responses. Shape (B,).
        margin (`Tensor`, *optional*):
            By how much each chosen response should win. Shape (B,).

    Returns:
        `Tensor`: a scalar.
    """
    _check_mask("rejected_scores", rejected_scores, "chosen_scores", chosen_scores)
    difference = chosen_scores - rejected_scores
    if margin is not None:
        _check_mask("margin", margin, "chosen_scores", chosen_scores)
        difference = difference - margin
    return -F.logsigmoid(difference).mean()


def edit_ranking_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_edit_mask: Tensor,
    rejected_edit_mask: Tensor,
    aggregation: Literal["mean", "sum"] = "mean",
) -> Tensor:
    r"""Bradley-Terry loss of the edited tokens alone, after Xu et al. (ACL 2024, https://huggingface.co/papers/2406.02756).

    With U(y) the edited tokens of a response, the mean over the pairs of

    $$ -\log \sigma\Bigl(\mathrm{agg}_{t \in U(y^+)} r_t - \mathrm{agg}_{t \in U(y^-)} r_t\Bigr) $$

    A side without edited tokens (a pure insertion or deletion) counts 0: what was inserted must then score above 0, what
    was deleted below. Pairs without edited tokens on either side take no part.

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
    _check_mask("chosen_edit_mask", chosen_edit_mask, "chosen_scores", chosen_scores)
    _check_mask("rejected_edit_mask", rejected_edit_mask, "rejected_scores", rejected_scores)
    if chosen_scores.shape[0] != rejected_scores.shape[0]:
        raise ValueError(
            f"`chosen_scores` has shape {tuple(chosen_scores.shape)} and `rejected_scores` "
            f"{tuple(rejected_scores.shape)}: they must have as many rows."
        )
    if aggregation not in ("mean", "sum"):
        raise ValueError(f"`aggregation` must be 'mean' or 'sum', not {aggregation!r}.")
    aggregate = masked_mean if aggregation == "mean" else masked_sum
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

    A score is thus the log-odds that a token is one that an annotator would put in rather than take out, and 0 is
    undecided.

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
    _check_mask("chosen_edit_mask", chosen_edit_mask, "chosen_scores", chosen_scores)
    _check_mask("rejected_edit_mask", rejected_edit_mask, "rejected_scores", rejected_scores)
    # Zeroed before the sigmoid and not only after it: the gradient of a NaN that is masked later would still be NaN.
    edited_in = chosen_scores.masked_fill(~chosen_edit_mask.bool(), 0)
    edited_out = rejected_scores.masked_fill(~rejected_edit_mask.bool(), 0)
    total = masked_sum(-F.logsigmoid(edited_in), chosen_edit_mask)
    total = total + masked_sum(-F.logsigmoid(-edited_out), rejected_edit_mask)
    return total / (chosen_edit_mask.sum() + rejected_edit_mask.sum()).clamp(min=1)


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
    _check_mask("unchanged_mask", unchanged_mask, "scores", scores)
    return masked_mean(scores.masked_fill(~unchanged_mask.bool(), 0).square(), unchanged_mask)


def unchanged_classification_loss(scores: Tensor, unchanged_mask: Tensor) -> Tensor:
    r"""Cross-entropy of the tokens that no edit touched as tokens that are right, like those edited in:

    $$ \frac{1}{|N|} \sum_{t \in N} -\log \sigma(r_t) $$

    Whoever edits minimally has read these tokens and left them, which is a judgement too.

    Args:
        scores (`Tensor`):
            Token scores. Shape (B, L).
        unchanged_mask (`Tensor`):
            1 for unchanged completion tokens. Shape (B, L).

    Returns:
        `Tensor`: a scalar.
    """
    _check_mask("unchanged_mask", unchanged_mask, "scores", scores)
    return masked_mean(-F.logsigmoid(scores.masked_fill(~unchanged_mask.bool(), 0)), unchanged_mask)


def pairwise_wins(above: Tensor, below: Tensor) -> float:
    """In how many of the n·m pairs the score from `above` is the higher one; ties count half. (Mann and Whitney's U.)
    NaN if any score is.

    Args:
        above (`Tensor`):
            Scores that should be high. Shape (n,).
        below (`Tensor`):
            Scores that should be low. Shape (m,).
    """
    if above.ndim != 1 or below.ndim != 1:
        raise ValueError(f"`above` has shape {tuple(above.shape)} and `below` {tuple(below.shape)}: both must be flat.")
    if above.isnan().any() or below.isnan().any():
        return math.nan  # a score that is not a number has no rank
    # Ranks by binary search: n·m comparisons would take a gigabyte on a batch of long responses.
    ranked = below.contiguous().sort().values
    above = above.contiguous()
    lower = torch.searchsorted(ranked, above, right=False).sum()
    lower_or_equal = torch.searchsorted(ranked, above, right=True).sum()
    return (lower + lower_or_equal).item() / 2


def token_auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: how probable it is that a token with label 1 scores above one with label 0; ties count
    half.

    Args:
        scores (`Tensor`):
            Shape (N,). To ask how well low scores find wrong tokens, give the negated scores and label the wrong ones 1.
        labels (`Tensor`):
            1 or 0. Shape (N,).

    Returns:
        `float`: between 0 and 1, and NaN where either class is empty, since there is nothing to compare.
    """
    _check_mask("labels", labels, "scores", scores)
    labels = labels.bool()
    positives, negatives = scores[labels], scores[~labels]
    pairs = len(positives) * len(negatives)
    return pairwise_wins(positives, negatives) / pairs if pairs else math.nan


def edit_pair_wins(
    chosen_scores: Tensor, rejected_scores: Tensor, chosen_edit_mask: Tensor, rejected_edit_mask: Tensor
) -> Tensor:
    """For each row, how many of its (edited-in, edited-out) token pairs the model ranks rightly, and how many there are.

    Token accuracy is the first summed over the rows, divided by the second summed. Ties count half, so that scores which
    are the same everywhere get .5.

    Args:
        chosen_scores (`Tensor`):
            Token scores of the edited responses. Shape (B, L).
        rejected_scores (`Tensor`):
            Token scores of the original responses. Shape (B, L').
        chosen_edit_mask (`Tensor`):
            1 for tokens that were edited in. Shape (B, L).
        rejected_edit_mask (`Tensor`):
            1 for tokens that were edited out. Shape (B, L').

    Returns:
        `Tensor`: wins and pairs, shape (B, 2), in double precision since counts of pairs outgrow float32's integers.
    """
    _check_mask("chosen_edit_mask", chosen_edit_mask, "chosen_scores", chosen_scores)
    _check_mask("rejected_edit_mask", rejected_edit_mask, "rejected_scores", rejected_scores)
    rows = []
    for chosen, rejected, edited_in, edited_out in zip(
        chosen_scores, rejected_scores, chosen_edit_mask.bool(), rejected_edit_mask.bool(), strict=True
    ):
        above, below = chosen[edited_in], rejected[edited_out]
        rows.append((pairwise_wins(above, below), len(above) * len(below)))
    return torch.tensor(rows, dtype=torch.double, device=chosen_scores.device).reshape(-1, 2)
