"""Agreement between annotators on which words, or tokens, of an answer are wrong.

Each annotator of an answer marks every word of the original with 1 (edited out, or the word right after an insertion)
or 0.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..edits.alignment import align_edits, align_words
from ..utils.statistics import Estimate, check_bootstrap, estimate, json_ready, markdown, resampled


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EditedAnswer(NamedTuple):
    """The edit that one annotator made of one answer. If it equals the original, nothing was wrong."""

    row: Hashable
    annotator: str
    original: str
    edited: str


def cohens_kappa(table: np.ndarray) -> np.ndarray:
    r"""Agreement of two annotators beyond chance (Cohen 1960).

        kappa = (p_o - p_e) / (1 - p_e),   p_o = sum_k p_kk,   p_e = sum_k p_k. p_.k

    NaN if both annotators gave every word the same label: then agreement cannot be told from chance.

    Args:
        table (`np.ndarray`):
            Shape (..., 2, 2): how many words the first annotator gave label i and the second label j.

    Returns:
        `np.ndarray` of shape (...).
    """
    table = _counts(table, "table", (2, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = table / table.sum((-2, -1), keepdims=True)
        chance = (p.sum(-1) * p.sum(-2)).sum(-1)
        # 1 - p_e is never just above 0 but through rounding.
        return np.where(chance < 1 - 1e-12, (p[..., 0, 0] + p[..., 1, 1] - chance) / (1 - chance), math.nan)


def pair_f1(table: np.ndarray) -> np.ndarray:
    """2 n_11 / (2 n_11 + n_01 + n_10): agreement on the words that are marked, of which unmarked ones are no part. NaN
    where neither marked a word. `table` is that of [`cohens_kappa`]."""
    table = _counts(table, "table", (2, 2))
    with np.errstate(invalid="ignore"):
        both = 2 * table[..., 1, 1]
        return both / (both + table[..., 0, 1] + table[..., 1, 0])


def krippendorffs_alpha(marks: np.ndarray) -> np.ndarray:
    r"""Agreement of any number of annotators beyond chance, for labels 0 and 1 (Krippendorff 2011, nominal data).

    With n_uk the number of annotators that gave word u label k, m_u = n_u0 + n_u1 >= 2, and n_k = sum_u n_uk:

        alpha = 1 - D_o / D_e = 1 - (n_0 + n_1 - 1) sum_u [n_u0 n_u1 / (m_u - 1)] / (n_0 n_1)

    NaN where all labels are the same.

    Args:
        marks (`np.ndarray`):
            Shape (..., 3): sum_u n_u0 n_u1 / (m_u - 1), n_0 and n_1.

    Returns:
        `np.ndarray` of shape (...).
    """
    disagreement, zeros, ones = np.moveaxis(_counts(marks, "marks", (3,)), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(zeros * ones > 0, 1 - (zeros + ones - 1) * disagreement / (zeros * ones), math.nan)


def _counts(array: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array, dtype=float)
    if array.shape[-len(shape) :] != shape:
        raise ValueError(f"`{name}` must have the shape (..., {', '.join(map(str, shape))}), but has {array.shape}.")
    return array


@dataclass(frozen=True)
class PairAgreement:
    """Two annotators: the rows and words that both have seen, the share of words that they label alike, and how far
    they agree beyond chance and on the marked words."""

    annotators: tuple[str, str]
    rows: int
    words: int
    same: float
    kappa: Estimate
    f1: Estimate


@dataclass(frozen=True)
class AgreementReport:
    """How far annotators agree, see [`measure_agreement`].

    Args:
        unit (`"words"` or `"tokens"`):
            What is counted.
        rows, words (`int`):
            With at least two annotators.
        alpha ([`~utils.statistics.Estimate`]):
            Krippendorff's alpha of all annotators.
        f1 ([`~utils.statistics.Estimate`]):
            Of all pairs of annotators together.
        pairs (`tuple[PairAgreement, ...]`):
            Each pair that has a row in common.
    """

    unit: str
    rows: int
    words: int
    alpha: Estimate
    f1: Estimate
    pairs: tuple[PairAgreement, ...]

    def summary(self) -> dict[str, str]:
        return {
            "rows with two annotators or more": str(self.rows),
            f"{self.unit} of their original answers": str(self.words),
            "Krippendorff's alpha": str(self.alpha),
            "F1 of the marked ones, all pairs": str(self.f1),
        }

    def table(self) -> str:
        """The figures as markdown tables."""
        rows = {
            " and ".join(pair.annotators): f"{pair.rows} | {pair.words} | {pair.same:.1%} | {pair.kappa} | {pair.f1}"
            for pair in self.pairs
        }
        tables = [markdown("all annotators", "", self.summary())]
        if rows:
            tables.append(markdown("pair", f"rows | {self.unit} | labelled alike | Cohen's kappa | F1", rows))
        return "\n\n".join(tables)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-compatible values; NaN becomes `None`."""
        return json_ready(asdict(self))


def measure_agreement(
    answers: Sequence[EditedAnswer],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 1000,
) -> AgreementReport:
    """Measures how far annotators agree on what is wrong, by [`krippendorffs_alpha`], [`cohens_kappa`] and [`pair_f1`].

    The words of all rows are pooled. Intervals are percentile bootstraps over rows, for the words of a row are not
    independent; with a dozen rows or fewer they are too narrow.

    Args:
        answers (`Sequence[EditedAnswer]`):
            At most one for each annotator and row. Rows with a single annotator are ignored.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            A fast tokenizer. Without one, words are labelled.
        seed (`int`, *optional*, defaults to `0`):
            The same seed gives the same intervals.
        level (`float`, *optional*, defaults to `0.95`):
            Their coverage.
        resamples (`int`, *optional*, defaults to `1000`):
            Number of samples drawn.

    Raises:
        ValueError: If an annotator has two answers of a row, a row has two originals, or `level` or `resamples` is out
            of range.
    """
    check_bootstrap(level, resamples)
    labels = _labels(answers, tokenizer)
    people = sorted({name for row in labels.values() for name in row})
    counts = np.array([*resampled(len(labels), seed, resamples)]) if labels else np.zeros((resamples, 0))

    def measure(figure: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Estimate:
        samples = np.tensordot(counts, rows, axes=1)
        return estimate(float(figure(rows.sum(0))), figure(samples), level)

    marks = np.array([_marks(list(row.values())) for row in labels.values()]).reshape(-1, 3)
    pairs, everyone = [], np.zeros((len(labels), 2, 2))
    for pair in combinations(people, 2):
        tables = np.array([_table(row, pair) for row in labels.values()])
        words = tables.sum()
        if words:
            everyone += tables
            same = float((tables[:, 0, 0] + tables[:, 1, 1]).sum() / words)
            kappa, f1 = measure(cohens_kappa, tables), measure(pair_f1, tables)
            rows = int((tables.sum((1, 2)) > 0).sum())
            pairs.append(PairAgreement(pair, rows, int(words), same, kappa, f1))
    return AgreementReport(
        unit="words" if tokenizer is None else "tokens",
        rows=len(labels),
        words=sum(len(next(iter(row.values()))) for row in labels.values()),
        alpha=measure(krippendorffs_alpha, marks),
        f1=measure(pair_f1, everyone),
        pairs=tuple(pairs),
    )


def _labels(
    answers: Sequence[EditedAnswer], tokenizer: "PreTrainedTokenizerBase | None"
) -> dict[Hashable, dict[str, np.ndarray]]:
    """For each row with two annotators or more, the labels of each."""
    rows: dict[Hashable, dict[str, EditedAnswer]] = {}
    for answer in answers:
        row = rows.setdefault(answer.row, {})
        if answer.annotator in row:
            raise ValueError(f"{answer.annotator} has two answers of row {answer.row}: give one.")
        if any(other.original != answer.original for other in row.values()):
            raise ValueError(f"The answers of row {answer.row} are not edits of one original.")
        row[answer.annotator] = answer
    labels = {}
    for key, row in rows.items():
        if len(row) > 1:
            labels[key] = {name: _label(answer, tokenizer) for name, answer in row.items()}
    return labels


def _label(answer: EditedAnswer, tokenizer: "PreTrainedTokenizerBase | None") -> np.ndarray:
    texts = answer.original, answer.edited
    alignment = align_words(*texts) if tokenizer is None else align_edits(*texts, tokenizer)
    return np.array(alignment.original_mask, dtype=bool) | np.array(alignment.original_anchors, dtype=bool)


def _marks(labels: list[np.ndarray]) -> tuple[float, float, float]:
    ones = np.sum(labels, axis=0)
    zeros = len(labels) - ones
    return (zeros * ones / (len(labels) - 1)).sum(), zeros.sum(), ones.sum()


def _table(row: Mapping[str, np.ndarray], pair: tuple[str, str]) -> np.ndarray:
    if not all(name in row for name in pair):
        return np.zeros((2, 2))
    first, second = (row[name] for name in pair)
    return np.bincount(2 * first + second, minlength=4).reshape(2, 2)
