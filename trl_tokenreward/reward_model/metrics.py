"""Metrics of token scores: AUROC and pairwise accuracy."""

import math
from collections import Counter

import torch
from torch import Tensor

from ..nn.masked import check_shapes


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
            Shape (N,). To ask how well low scores find wrong tokens, give the negated scores and label the wrong ones
            1.
        labels (`Tensor`):
            1 or 0. Shape (N,).

    Returns:
        `float`: between 0 and 1, and NaN where either class is empty, since there is nothing to compare.
    """
    check_shapes("labels", labels, "scores", scores)
    labels = labels.bool()
    positives, negatives = scores[labels], scores[~labels]
    pairs = len(positives) * len(negatives)
    return pairwise_wins(positives, negatives) / pairs if pairs else math.nan


def edit_pair_wins(
    chosen_scores: Tensor, rejected_scores: Tensor, chosen_edit_mask: Tensor, rejected_edit_mask: Tensor
) -> Tensor:
    """For each row, how many of its (edited-in, edited-out) token pairs the model ranks rightly, and how many there
    are.

    Token accuracy is the first summed over the rows, divided by the second summed. Ties count half, so that scores
    which are the same everywhere get .5.

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
    check_shapes("chosen_edit_mask", chosen_edit_mask, "chosen_scores", chosen_scores)
    check_shapes("rejected_edit_mask", rejected_edit_mask, "rejected_scores", rejected_scores)
    rows = []
    for chosen, rejected, edited_in, edited_out in zip(
        chosen_scores, rejected_scores, chosen_edit_mask.bool(), rejected_edit_mask.bool(), strict=True
    ):
        above, below = chosen[edited_in], rejected[edited_out]
        rows.append((pairwise_wins(above, below), len(above) * len(below)))
    return torch.tensor(rows, dtype=torch.double, device=chosen_scores.device).reshape(-1, 2)


class LearningAlarm:
    """Tells whether token scores learn, early in a training.

    It looks at the AUROC of wrong tokens in the training batches shortly before a tenth of the steps. With heads at the
    rate of a pretrained backbone it was .48 there, and .71 to .73 where the scores learned (SmolLM2-135M, 1,000 edited
    film reviews). The losses do not tell: they rise at first in both cases.

    Args:
        num_steps (`int`):
            Optimizer steps of the training.
    """

    WINDOW = (0.06, 0.1)
    LOWEST = 0.6
    LEAST_ROWS = 32

    def __init__(self, num_steps: int):
        self.first, self.last = (math.ceil(share * num_steps) for share in self.WINDOW)
        self._aurocs: list[float] = []
        self._rows = 0

    def add(self, step: int, auroc: float, rows: int) -> float | None:
        """Add a training batch.

        Args:
            step (`int`):
                Optimizer steps before it.
            auroc (`float`):
                AUROC of its wrong tokens, NaN if it has no wrong or no other tokens.
            rows (`int`):
                Its rows.

        Returns:
            `float` or `None`: The mean AUROC, once, when it shows that the scores do not learn.
        """
        if self.first <= step < self.last and not math.isnan(auroc):
            self._aurocs.append(auroc)
            self._rows += rows
        if step < self.last or self._rows < self.LEAST_ROWS:
            return None
        mean = sum(self._aurocs) / len(self._aurocs)
        self._rows = 0
        return mean if mean < self.LOWEST else None


class WeightedMeans:
    """Means over several batches together: those of the batches, weighted by what they are means over."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, mean: float, count: float) -> None:
        """Adds a batch's mean over `count` pairs, or tokens by their weights. A mean over nothing is 0."""
        total, counted = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + mean * count, counted + count

    def means(self) -> dict[str, float]:
        # Counts of tokens by their weights may be below 1.
        return {name: total / count if count else 0.0 for name, (total, count) in self._sums.items()}

    def pop(self) -> dict[str, float]:
        """Returns the means, and resets."""
        means = self.means()
        self._sums = {}
        return means


class TokenStatistics:
    """Metrics of the token scores since the last log.

    Args:
        pool_auroc (`bool`, *optional*, defaults to `False`):
            If `True`, the AUROC is of all batches' tokens together, which keeps them in memory; else it is the mean of
            the batches' own.
    """

    def __init__(self, pool_auroc: bool = False):
        self.pool_auroc = pool_auroc
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._tokens: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._aurocs: list[float] = []

    def add(self, scores: torch.Tensor, edited: torch.Tensor, unchanged: torch.Tensor) -> float:
        """Adds a batch of B rows; all have the shape (B, 2, L), chosen before rejected.

        Returns:
            `float`: The batch's own AUROC of wrong tokens; NaN if there is none, or if AUROCs are pooled.
        """
        chosen, rejected = scores.unbind(1)
        edited_in, edited_out = edited.unbind(1)
        kinds = {
            "edited_in": chosen[edited_in],
            "edited_out": rejected[edited_out],
            "unchanged": scores[unchanged],
        }
        for kind, of_kind in kinds.items():
            self._sums[f"token_score/{kind}"] += of_kind.double().sum().item()
            self._sums[f"tokens/{kind}"] += len(of_kind)
        wins, pairs = edit_pair_wins(chosen, rejected, edited_in, edited_out).sum(0).tolist()
        self._sums["wins"] += wins
        self._sums["pairs"] += pairs

        compared = edited_out | unchanged[:, 1]
        tokens = -rejected[compared], edited_out[compared]
        if self.pool_auroc:
            self._tokens.append(tokens)
            return math.nan
        auroc = token_auroc(*tokens)
        if not math.isnan(auroc):
            self._aurocs.append(auroc)
        return auroc

    def pop(self) -> dict[str, float]:
        """Returns the metrics that have measurements, and resets."""
        sums, aurocs = self._sums, self._aurocs
        if self._tokens:
            scores, labels = (torch.cat(parts) for parts in zip(*self._tokens, strict=True))
            auroc = token_auroc(scores, labels)
            aurocs = [] if math.isnan(auroc) else [auroc]
        metrics = {}
        if sums["pairs"]:
            metrics["token_accuracy"] = sums["wins"] / sums["pairs"]
        if aurocs:
            metrics["token_auroc"] = sum(aurocs) / len(aurocs)
        for kind in ("edited_in", "edited_out", "unchanged"):
            if sums[f"tokens/{kind}"]:
                metrics[f"token_score/{kind}"] = sums[f"token_score/{kind}"] / sums[f"tokens/{kind}"]
        self._reset()
        return metrics
