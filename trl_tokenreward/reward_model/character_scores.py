"""Marked characters: what token scores say of the characters of a text, and how well that fits what people marked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


# Thresholds that are tried: quantiles of the scores of all characters.
_CANDIDATES = 200


class MarkedText(NamedTuple):
    """The C characters of a text.

    Args:
        scores (`np.ndarray`):
            Their scores. Shape (C,).
        wrong (`np.ndarray`):
            Which of them are marked as wrong. Shape (C,).
    """

    scores: np.ndarray
    wrong: np.ndarray


def marked_text(
    offsets: Sequence[Sequence[int]], scores: Sequence[float], spans: Sequence[Sequence[int]]
) -> MarkedText:
    """Spreads the scores of tokens over the characters that they stand for.

    What stands between two tokens, such as the space before a word, has the higher of their scores, so that it is
    marked where both are. What is in no token's span and not between two is never marked.

    Args:
        offsets (`Sequence[Sequence[int]]`):
            `[start, end)` characters of each token, without the white space at their edges; where both are equal the
            token stands for none.
        scores (`Sequence[float]`):
            The score of each token.
        spans (`Sequence[Sequence[int]]`):
            `[start, end)` characters that are wrong.
    """
    length = max((end for _, end in (*offsets, *spans)), default=0)
    values, wrong = np.full(length, np.inf), np.zeros(length, dtype=bool)
    reached, last = None, np.inf
    for (start, end), score in zip(offsets, scores, strict=True):
        if start >= end:
            continue
        if reached is not None:
            values[reached:start] = max(last, score)
        values[start:end] = score
        reached, last = end, score
    for start, end in spans:
        wrong[start:end] = True
    return MarkedText(values, wrong)


def character_f1(text: MarkedText, thresholds: np.ndarray) -> np.ndarray:
    """F1 of the characters that score below each of T thresholds, shape (T,): 1 where none is marked and none is wrong,
    0 where only one of these holds (SemEval-2021 task 5, Pavlopoulos et al., 2021)."""
    marked = text.scores < thresholds[:, None]
    sizes = marked.sum(1) + text.wrong.sum()
    return np.where(sizes == 0, 1.0, 2 * (marked & text.wrong).sum(1) / np.maximum(sizes, 1))


def best_threshold(texts: Sequence[MarkedText]) -> float:
    """The threshold with the highest mean [`character_f1`]; of equal ones the lowest. NaN without a scored character.

    It is the middle between two scores that are quantiles of all, or lies below or above them all.
    """
    scores = np.concatenate([np.zeros(0), *(text.scores for text in texts)])
    scores = np.unique(scores[np.isfinite(scores)])
    if not len(scores):
        return float("nan")
    chosen = np.unique(np.quantile(scores, np.linspace(0, 1, _CANDIDATES), method="lower"))
    thresholds = np.concatenate([[chosen[0] - 1], (chosen[1:] + chosen[:-1]) / 2, [chosen[-1] + 1]])
    return float(thresholds[np.argmax(sum(character_f1(text, thresholds) for text in texts))])
