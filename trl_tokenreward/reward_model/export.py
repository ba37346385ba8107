"""Scores as pre-annotations: people correct the spans that a model marks."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset, IterableDataset

from ..data.annotation_tools.predictions import (
    PreAnnotated,
    argilla_records,
    argilla_settings,
    label_studio_config,
    label_studio_tasks,
    low_spans,
)
from ..data.formats import plain_rows
from ..utils.files import check_writable, new_path, write_text
from ..utils.validation import check_least, check_least_if_given
from .implicit import ImplicitReward
from .scoring import TokenScorer, as_pair
from .text_scores import TextScores


Tool = Literal["label-studio", "argilla"]


class Exported(NamedTuple):
    """What was exported.

    Args:
        texts (`list[PreAnnotated]`):
            The texts with their spans.
        counts (`dict[str, int]`):
            `"rows"`, `"kept"` texts, and what was dropped by reason.
    """

    texts: list[PreAnnotated]
    counts: dict[str, int]


def export_scores(
    tool: Tool,
    dataset: Dataset | IterableDataset | Iterable[Mapping[str, Any]],
    scorer: TokenScorer,
    output: str | Path,
    *,
    threshold: float = 0.0,
    label: str = "wrong",
    limit: int | None = None,
    batch_size: int = 8,
) -> Exported:
    """Writes texts for an annotation tool, with what a model finds wrong as pre-annotations.

    Adjacent tokens that score below the threshold are one span, without white space at its ends.
    [`~data.importers.import_dataset`] reads what becomes of them.

    For Label Studio the output has `tasks.json` and `labeling.xml`, the labeling interface of the project. For Argilla
    it has `records.json` and `settings.json`. Argilla's page and its server count characters beyond U+FFFF, such as
    emoji, differently, so texts with such characters are dropped and counted.

    Args:
        tool (`"label-studio"` or `"argilla"`):
            The annotation tool.
        dataset (`Dataset`, `IterableDataset` or `Iterable[Mapping]`):
            Rows with a `text` or `completion`, and perhaps a `prompt`: texts, not messages.
        scorer ([`TokenScorer`]):
            The model, with `signal="token_scores"`.
        output (`str` or `Path`):
            A new folder.
        threshold (`float`, *optional*, defaults to `0.0`):
            Tokens with a lower score are marked. With `token_loss="classification"`, a score of 0 is a probability of a
            half.
        label (`str`, *optional*, defaults to `"wrong"`):
            The label of the spans.
        limit (`int`, *optional*):
            Export the first so many rows only.
        batch_size (`int`, *optional*, defaults to `8`):
            Texts in one forward pass.

    Returns:
        [`Exported`]

    Raises:
        TypeError: If the scorer is no token reward model.
        ValueError: If `output` exists, an argument is out of range, a row is malformed or has more tokens than the
            model reads (the error names it), or no text is left.
    """
    output = Path(output)
    if tool not in ("label-studio", "argilla"):
        raise ValueError(f"`tool` must be 'label-studio' or 'argilla', but is {tool!r}.")
    if output.exists():
        raise ValueError(f"{output} exists already: remove it, or give another name.")
    check_writable(output)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be a number, but is {threshold}.")
    if not label.strip():
        raise ValueError("`label` must have a name.")
    if isinstance(scorer.model, ImplicitReward):
        raise TypeError(f"Spans are made of the scores of a TokenRewardModel, but {scorer.name} has implicit rewards.")
    if scorer.signal != "token_scores":
        raise ValueError(f"Spans are made of token scores, but the signal of {scorer.name} is {scorer.signal!r}.")
    check_least(batch_size=(batch_size, 1))
    check_least_if_given(limit=(limit, 1))
    rows = plain_rows(dataset, "exported") if isinstance(dataset, (Dataset, IterableDataset)) else dataset
    pairs = [_text(row, index) for index, row in enumerate(islice(iter(rows), limit))]
    prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    counts: Counter[str] = Counter(rows=len(pairs), kept=0)
    made = []
    for row, scores in enumerate(scorer.model.score_texts(texts, scorer.tokenizer, prompts, batch_size=batch_size)):
        reason = _unfit(tool, scores)
        counts[reason or "kept"] += 1
        if reason is None:
            spans = low_spans(scores.text, scores.spans, scores.token_scores, threshold)
            made.append(PreAnnotated(row, prompts[row], scores.text, min(scores.token_scores), spans))
    if not made:
        raise ValueError(f"No text is left to export ({', '.join(f'{name}: {n}' for name, n in counts.items())}).")
    files: dict[str, Any]
    if tool == "label-studio":
        files = {
            "tasks.json": label_studio_tasks(made, label, scorer.name),
            "labeling.xml": label_studio_config(made, label),
        }
    else:
        files = {
            "records.json": argilla_records(made, label, scorer.name),
            "settings.json": argilla_settings(made, label),
        }
    output.parent.mkdir(parents=True, exist_ok=True)
    with new_path(output) as new:
        new.mkdir()
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            write_text(new / name, text)
    return Exported(made, dict(counts))


def _text(row: Mapping[str, Any], index: int) -> tuple[str, str]:
    pair = as_pair(row, index)
    if pair is row:
        what = "has spans of its own" if "completion" in row else "is a pair"
        raise ValueError(
            f"Row {index} {what}: texts to annotate are in a column `text` or `completion`, with no column of spans or "
            "of a second side."
        )
    if not isinstance(pair["chosen"], str):
        raise ValueError(f"Row {index} has messages: annotation tools show texts.")
    return pair["prompt"], pair["chosen"]


def _unfit(tool: Tool, scores: TextScores) -> str | None:
    if not scores.text.strip() or not scores.tokens:
        return "the text is empty"
    if tool == "argilla" and max(scores.text) > "\uffff":
        return "a text with characters beyond U+FFFF, which Argilla counts in two ways"
    return None
