"""Evaluates a token reward model on held-out rows: accuracy, AUROC, calibration and span F1 of token scores."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.collator import DataCollatorForTokenReward
from ..data.formats import SIDES
from ..data.preprocessing import CHARACTERS, prepare_dataset
from ..data.vocabulary import check_ids
from ..nn.finite import not_finite
from ..nn.modules import evaluation_mode, max_positions, vocab_size, without_peft
from ..nn.unpadding import groups_by_length
from ..utils.statistics import (
    Estimate,
    auroc_of_ranks,
    check_bootstrap,
    estimate,
    markdown,
    ratio,
    resampled,
    write_figures,
)
from ..utils.validation import check_least, check_tokenizer
from .character_scores import MarkedText, SpanThreshold, best_span_threshold, character_f1, marked_text
from .labels import by_row, read_labels
from .metrics import edit_pair_wins, token_auroc
from .modeling import TokenRewardModel


# Batches that are read at a time.
_READ = 32


@dataclass(frozen=True)
class TokenGroup:
    """Tokens of one kind: how many there are, how many of them are edited, how well the scores tell these from the
    unchanged ones (AUROC, NaN where there is nothing to compare), and the mean score of all."""

    name: str
    tokens: int
    edited: int
    auroc: float
    mean_score: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Edited tokens with a probability sigmoid(score) from `low` to `high`: their number, their mean probability, and
    the share of them that was edited in, which would be the same number in a calibrated model. NaN where there are
    none."""

    low: float
    high: float
    tokens: int
    mean_probability: float
    share_edited_in: float


@dataclass(frozen=True)
class TokenRewardReport:
    """Metrics of a token reward model, see [`evaluate_token_rewards`].

    Args:
        rows (`int`), dropped (`dict[str, int]`):
            Rows that were measured, and [`~data.dropped.DroppedRows`]'s counts.
        pairs (`int`):
            Those of them that have two sides.
        sequence_accuracy ([`~utils.statistics.Estimate`]):
            Share of pairs whose chosen side scores higher as a whole. NaN if the sequence head is untrained.
        token_accuracy ([`~utils.statistics.Estimate`]):
            Share of (edited-in, edited-out) token pairs within a row that are ranked rightly; ties count half.
        token_auroc ([`~utils.statistics.Estimate`]):
            How well low scores find the edited-out tokens among the completion's tokens of the rejected sides, to which
            rows of one side belong.
        span_f1 ([`~utils.statistics.Estimate`]):
            Mean over the rows with spans of the F1 of the characters that `span_threshold` calls wrong
            ([`~reward_model.character_scores.character_f1`]). NaN without such rows or without a threshold.
        span_threshold ([`~reward_model.character_scores.SpanThreshold`], *optional*):
            The threshold that was given.
        best_span_threshold ([`~reward_model.character_scores.SpanThreshold`]):
            The threshold with the highest F1 on these rows, to be used on others. NaN without rows with spans.
        rows_with_spans (`int`):
            The rows whose spans say of every character whether it is wrong: `completion_spans` without
            `completion_judged`, or `rejected_spans`.
        calibration_error (`float`):
            Expected calibration error: |mean probability - share edited in|, averaged over the edited tokens of pairs.
        reliability (`tuple[ReliabilityBin, ...]`):
            The bins of that average.
        by_position, by_length (`tuple[TokenGroup, ...]`):
            Tokens of the rejected sides by their place in the completion, and by the completion's length, in bins with
            about the same number of rows.
        by_kind (`tuple[TokenGroup, ...]`):
            Tokens of one kind of edit beside the unchanged ones of the same side: for deletions and replacements on the
            rejected side, where low scores should find them; for insertions, which leave no token there, on the chosen
            side, where high scores should.
        rows_without_kind (`int`):
            Pairs whose sides differ outside of their edit masks (such as those with spans of their own), so that
            nothing says what became what. They, and rows of one side, are not in `by_kind`.
    """

    rows: int
    dropped: dict[str, int]
    pairs: int
    sequence_accuracy: Estimate
    token_accuracy: Estimate
    token_auroc: Estimate
    span_f1: Estimate
    span_threshold: SpanThreshold | None
    best_span_threshold: SpanThreshold
    rows_with_spans: int
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    by_position: tuple[TokenGroup, ...]
    by_length: tuple[TokenGroup, ...]
    by_kind: tuple[TokenGroup, ...]
    rows_without_kind: int

    def table(self) -> str:
        """The figures as markdown tables."""
        rows = {
            "rows": self.rows,
            "pairs": self.pairs,
            "rows dropped": self.dropped["rows"] - self.dropped["kept"],
            "sequence accuracy": self.sequence_accuracy,
            "token accuracy": self.token_accuracy,
            "AUROC of wrong tokens": self.token_auroc,
            "rows with spans": self.rows_with_spans,
            "F1 of wrong characters": self.span_f1,
            "characters are called wrong below": _threshold(self.span_threshold),
            "F1 would be highest below": _threshold(self.best_span_threshold),
            "expected calibration error": _number(self.calibration_error),
        }
        tables = [markdown("", "token reward model", rows)]
        for title in ("position", "length", *(["kind"] if self.pairs else [])):
            groups = {
                group.name: f"{group.tokens} | {group.edited} | {_number(group.auroc)} | {_number(group.mean_score)}"
                for group in getattr(self, f"by_{title}")
            }
            tables.append(markdown(title, "tokens | edited | AUROC | mean score", groups))
        bins = {
            f"{b.low:.2f} to {b.high:.2f}": f"{b.tokens} | {_number(b.mean_probability)} | {_number(b.share_edited_in)}"
            for b in self.reliability
        }
        if self.pairs:
            tables.append(markdown("probability", "edited tokens | mean probability | share edited in", bins))
        return "\n\n".join(tables)

    __str__ = table

    def save(self, path: str | Path) -> None:
        """Write the figures to a JSON file."""
        write_figures(Path(path), asdict(self))


class _Tokens(NamedTuple):
    """The completion tokens of one side of all rows, each of shape (N,)."""

    row: np.ndarray
    score: np.ndarray
    edited: np.ndarray
    kind: np.ndarray
    place: np.ndarray
    length: np.ndarray


_KINDS = (int, np.float32, bool, "<U7", int, int)  # of the parts of `_Tokens`


def evaluate_token_rewards(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
    *,
    max_length: int | None = None,
    max_edit_ratio: float | None = None,
    use_anchors: bool = False,
    batch_size: int = 8,
    num_bins: int = 10,
    num_groups: int = 5,
    span_threshold: SpanThreshold | float | None = None,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 1000,
) -> TokenRewardReport:
    """Measure a token reward model on held-out rows: preference pairs, rows of one side with marked spans, or both.

    Sequence accuracy, token accuracy and AUROC are those of [`TokenRewardTrainer.evaluate`] on the same data with the
    same settings.

    Prepared rows do not hold the kind of an edit. It follows from their masks: without their masked tokens both sides
    are equal, so an edit is a gap between two kept tokens. A gap with masked tokens on both sides is a replacement,
    with some on the rejected side alone a deletion, on the chosen side alone an insertion, as in
    [`EditAlignment.operations`].

    Args:
        model ([`TokenRewardModel`] or `PeftModel`):
            The model, or an adapter around one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows in any format of [`~data.preprocessing.prepare_dataset`], prepared ones too, which have no characters
            any more.
        max_length, max_edit_ratio, use_anchors:
            As in [`TokenRewardConfig`].
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in one forward pass.
        num_bins (`int`, *optional*, defaults to `10`):
            Bins of the calibration, of equal width.
        num_groups (`int`, *optional*, defaults to `5`):
            Groups of positions and of lengths.
        span_threshold ([`~reward_model.character_scores.SpanThreshold`] or `float`, *optional*):
            Characters of tokens that score below it are called wrong, for `span_f1`. Choose it on other rows: it is
            their report's `best_span_threshold`.
        seed, level, resamples:
            Of the bootstrap over rows, see [`~utils.statistics.bootstrap_interval`].

    Raises:
        `TypeError`: if the model is no token reward model, the tokenizer none, or the data set none of `datasets`.
        `ValueError`: for malformed rows, if no rows are left, and for bad numbers.
    """
    if not isinstance(without_peft(model), TokenRewardModel):
        raise TypeError(f"`model` must be a TokenRewardModel or an adapter around one, got {type(model).__name__}.")
    check_tokenizer(tokenizer, "tokenizer")
    check_least(batch_size=(batch_size, 1), num_bins=(num_bins, 1), num_groups=(num_groups, 1))
    check_bootstrap(level, resamples)
    if span_threshold is not None:
        span_threshold = _checked(span_threshold)
    rows, dropped = prepare_dataset(
        dataset,
        tokenizer,
        max_length=max_length,
        max_edit_ratio=max_edit_ratio,
        name="evaluation",
        with_characters=True,
    )
    rows = check_ids(rows, ("chosen_ids", "rejected_ids"), vocab_size(model), "evaluation", max_positions(model))
    table, sides, unknown, texts = _score_rows(model, tokenizer, rows, use_anchors, batch_size)
    dropped.require_rows("evaluation")
    chosen, rejected = sides["chosen"], sides["rejected"]
    marked = np.array([text is not None for text in texts], dtype=float)
    if span_threshold is not None and not marked.any():
        raise ValueError("`span_threshold` has no effect: no row has spans of characters.")
    f1 = np.zeros(len(texts))
    if span_threshold is not None:
        score, margin = np.array([span_threshold.score]), span_threshold.margin
        f1 = np.array([0.0 if text is None else character_f1(text, score, margin)[0] for text in texts])

    is_pair, won, wins, pairs = table.T
    with_sequences = is_pair * without_peft(model).sequence_head_is_trained
    with_spans = marked * (span_threshold is not None)
    _, rank = np.unique(-rejected.score, return_inverse=True)

    def figures(counts: np.ndarray) -> list[float]:
        return [
            ratio(counts @ (with_sequences * won), counts @ with_sequences),
            ratio(counts @ wins, counts @ pairs),
            auroc_of_ranks(rank, rejected.edited, counts[rejected.row]),
            ratio(float(counts @ f1), float(counts @ with_spans)),
        ]

    values = figures(np.ones(len(table), dtype=int))
    # A sample may have drawn no row with an edit, where there are few.
    samples = np.array([figures(counts) for counts in resampled(len(table), seed, resamples)])
    estimates = [estimate(value, column, level) for value, column in zip(values, samples.T, strict=True)]

    # Of pairs, whose edited-in tokens are right. In rows of one side all edited tokens are wrong.
    of_pairs = [side.score[side.edited & (is_pair[side.row] > 0)] for side in (chosen, rejected)]
    edited_scores, labels = np.concatenate(of_pairs), np.repeat([1.0, 0.0], [len(scores) for scores in of_pairs])
    reliability = _reliability(torch.from_numpy(edited_scores).double().sigmoid().numpy(), labels, num_bins)
    gaps = [b.tokens * abs(b.mean_probability - b.share_edited_in) for b in reliability if b.tokens]
    return TokenRewardReport(
        rows=len(table),
        dropped=dropped.counts(),
        pairs=int(is_pair.sum()),
        sequence_accuracy=estimates[0],
        token_accuracy=estimates[1],
        token_auroc=estimates[2],
        span_f1=estimates[3],
        span_threshold=span_threshold,
        best_span_threshold=best_span_threshold([text for text in texts if text is not None]),
        rows_with_spans=int(marked.sum()),
        calibration_error=ratio(sum(gaps), len(labels)),
        reliability=reliability,
        by_position=_by_position(rejected, num_groups),
        by_length=_by_length(rejected, num_groups),
        by_kind=_by_kind(chosen, rejected),
        rows_without_kind=unknown,
    )


@torch.no_grad()
def _score_rows(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict], use_anchors: bool, batch_size: int
) -> tuple[np.ndarray, dict[str, _Tokens], int, list[MarkedText | None]]:
    """For each row whether it is a pair, 1 if the chosen side won, the token pairs ranked correctly, and all token
    pairs, (R, 4); the labelled tokens of each side; the number of pairs whose masks do not tell the kinds of their
    edits; and the characters of the rows with spans."""
    collate = DataCollatorForTokenReward(tokenizer.pad_token_id or 0)
    table: dict[int, np.ndarray] = {}
    sides: dict[str, list[Any]] = {side: [_Tokens(*(np.zeros(0, dtype) for dtype in _KINDS))] for side in SIDES}
    texts: dict[int, MarkedText | None] = {}
    unknown = 0
    with evaluation_mode(model):
        for numbers, batch_rows in _batches(rows, batch_size):
            batch = collate(batch_rows)
            device = next(model.parameters()).device
            output = model(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device))
            labels = read_labels(batch, use_anchors)
            scores = by_row(output.token_scores.float().cpu(), labels.places)
            sequences = by_row(output.logits.squeeze(-1).cpu(), labels.places)
            edited, labelled = labels.edited > 0, labels.edited + labels.unchanged > 0
            made = {"a token score of `model`": scores.flatten(1), "a sequence score of `model`": sequences}
            if problem := not_finite("Evaluation, rows that were kept", made, labelled.flatten(1), numbers):
                raise ValueError(problem)
            wins = edit_pair_wins(*scores.unbind(1), *edited.unbind(1))
            won = sequences[:, 0] > sequences[:, 1]
            figures = torch.cat([torch.stack([labels.is_pair, won], dim=1), wins], dim=1).numpy()
            for index, (number, row) in enumerate(zip(numbers, batch_rows, strict=True)):
                is_pair = bool(labels.is_pair[index])
                kinds = edit_kinds(row) if is_pair else None
                unknown += is_pair and kinds is None
                for place, side in enumerate(SIDES):
                    if side == "chosen" and not is_pair:
                        continue
                    inside = batch["completion_mask"][labels.places[index, place]]
                    n, known = int(inside.sum()), labelled[index, place][inside].numpy()
                    of_side = _Tokens(
                        row=np.full(n, number),
                        score=scores[index, place][inside].numpy(),
                        edited=edited[index, place][inside].numpy(),
                        kind=np.full(n, "unknown") if kinds is None else kinds[side],
                        place=np.arange(n),
                        length=np.full(n, n),
                    )
                    sides[side].append(_Tokens(*(part[known] for part in of_side)))
                table[number], texts[number] = figures[index], _marked_text(row, scores[index, 1])
    return (
        np.array([table[number] for number in range(len(table))]).reshape(-1, 4),
        {s: _Tokens(*map(np.concatenate, zip(*sides[s], strict=True))) for s in SIDES},
        unknown,
        [texts[number] for number in range(len(texts))],
    )


def _batches(rows: Iterable[dict], batch_size: int) -> Iterator[tuple[list[int], list[dict]]]:
    """Batches of rows of like length, with the rows' numbers. So many rows are read at a time that a batch has little
    padding."""
    first, rows = 0, iter(rows)
    while read := list(islice(rows, _READ * batch_size)):
        lengths = torch.tensor([max(len(row.get(f"{side}_ids") or ()) for side in SIDES) for row in read])
        for group in groups_by_length(lengths, batch_size):
            yield [first + index for index in group.tolist()], [read[index] for index in group.tolist()]
        first += len(read)


def _marked_text(row: dict[str, Any], scores: torch.Tensor) -> MarkedText | None:
    offsets, spans = (row.get(column) or [] for column in CHARACTERS)
    return marked_text(offsets, scores[: len(offsets)].tolist(), spans) if offsets else None


def edit_kinds(row: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The kind of edit of each completion token of a prepared row, `"insert"`, `"delete"`, `"replace"` or `""`, by
    side; or `None` where the sides differ outside of their edit masks."""
    masks, gaps, kept = {}, {}, {}
    for side in SIDES:
        inside = np.array(row[f"{side}_completion_mask"], dtype=bool)
        masks[side] = np.array(row[f"{side}_edit_mask"], dtype=bool)[inside]
        kept[side] = np.array(row[f"{side}_ids"])[inside][~masks[side]]
        gaps[side] = (~masks[side]).cumsum()  # kept tokens before each token that is edited
    if not np.array_equal(kept["chosen"], kept["rejected"]):
        return None
    kinds = {}
    for side, other, alone in (("chosen", "rejected", "insert"), ("rejected", "chosen", "delete")):
        both = np.isin(gaps[side], gaps[other][masks[other]])
        kinds[side] = np.where(masks[side], np.where(both, "replace", alone), "")
    return kinds


def _group(name: str, scores: np.ndarray, edited: np.ndarray, sign: int = -1) -> TokenGroup:
    mean = float(scores.mean()) if len(scores) else math.nan
    return TokenGroup(name, len(scores), int(edited.sum()), _auroc(sign * scores, edited), mean)


def _by_position(tokens: _Tokens, groups: int) -> tuple[TokenGroup, ...]:
    which = tokens.place * groups // tokens.length
    names = [f"{100 * i / groups:.0f} to {100 * (i + 1) / groups:.0f} %" for i in range(groups)]
    return tuple(_group(name, tokens.score[which == i], tokens.edited[which == i]) for i, name in enumerate(names))


def _by_length(tokens: _Tokens, groups: int) -> tuple[TokenGroup, ...]:
    if not len(tokens.row):
        return ()
    lengths = tokens.length[np.unique(tokens.row, return_index=True)[1]]
    # Of many rows of one length, two edges may be one.
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, groups + 1)[1:-1], method="lower"))
    which = np.searchsorted(edges, tokens.length)
    parts = [which == i for i in range(len(edges) + 1) if (which == i).any()]
    return tuple(
        _group(
            f"{tokens.length[part].min()} to {tokens.length[part].max()} tokens",
            tokens.score[part],
            tokens.edited[part],
        )
        for part in parts
    )


def _by_kind(chosen: _Tokens, rejected: _Tokens) -> tuple[TokenGroup, ...]:
    groups = []
    for kind, tokens, sign in (("insert", chosen, 1), ("delete", rejected, -1), ("replace", rejected, -1)):
        # An anchor may count as edited, but it is no token of an edit.
        part = (tokens.kind == kind) | ((tokens.kind == "") & ~tokens.edited)
        groups.append(_group(kind, tokens.score[part], (tokens.kind == kind)[part], sign))
    return tuple(groups)


def _reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[ReliabilityBin, ...]:
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    result = []
    for i in range(bins):
        inside = which == i
        means = (probabilities[inside].mean(), labels[inside].mean()) if inside.any() else (math.nan, math.nan)
        result.append(ReliabilityBin(i / bins, (i + 1) / bins, int(inside.sum()), *map(float, means)))
    return tuple(result)


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    return token_auroc(torch.from_numpy(scores), torch.from_numpy(labels))


def _checked(threshold: SpanThreshold | float) -> SpanThreshold:
    parts = list(threshold) if isinstance(threshold, tuple | list) else [threshold]
    if len(parts) == 2 and parts[1] is None:  # as a saved report has no margin
        parts.pop()
    if not 1 <= len(parts) <= 2 or not all(type(part) in (int, float) for part in parts):
        raise ValueError(
            "`span_threshold` must be a number or a `SpanThreshold`, a score and a margin, such as another report's "
            f"`best_span_threshold`, but is {threshold!r}."
        )
    score, margin = float(parts[0]), float(parts[1]) if len(parts) == 2 else math.inf
    if not math.isfinite(score):
        raise ValueError(
            f"`span_threshold` must be a finite number, but its score is {score}. A `best_span_threshold` is NaN where "
            "no row's spans say of every character whether it is wrong."
        )
    if not margin > 0:
        raise ValueError(f"The margin of `span_threshold` must be more than 0, but is {margin}.")
    return SpanThreshold(score, margin)


def _threshold(threshold: SpanThreshold | None) -> str:
    if threshold is None:
        return _number(math.nan)
    own = "" if math.isinf(threshold.margin) else f" and the text's lowest score + {threshold.margin:.3f}"
    return _number(threshold.score) + own


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
