"""Scores every token of texts for display.

[`score_dataset`] makes [`ScoredRows`] of texts, [`~ppo.completion_log.read_completions`] of the completions of a
training run. They are displayed on a terminal and in a notebook, and [`ScoredRows.write_page`] writes a page.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from datasets import Dataset, IterableDataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.formats import SIDES, check_row, plain_rows, row_format, row_sides, template_columns
from ..data.preprocessing import RowPreparer, prepared_sides
from ..nn.modules import max_positions, without_peft
from ..utils.loading import load_tokenizer, loading
from ..utils.text import distinct, unicode_problem
from ..utils.validation import check_least, check_least_if_given, check_tokenizer
from ..views.scored_rows import ScoredRows
from ..views.scored_text import ScoredRow, ScoredText
from .configuration import TokenRewardModelConfig
from .implicit import ImplicitReward
from .modeling import TokenRewardModel
from .saved_adapter import read_config
from .text_scores import scores_of_ids


Signal = Literal["token_scores", "sequence_score"]

# Rows that are scored before the next are read.
_CHUNK = 256
# The bytes of one character, so the most tokens that may have to wait for each other.
_LONGEST_CHARACTER = 4


class TokenScorer:
    """
    A token reward model, ready to score texts.

    Args:
        model ([`TokenRewardModel`], `PeftModel` or [`ImplicitReward`]):
            The model, an adapter around one, or implicit rewards, which have token scores alone.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, a fast one.
        name (`str`, *optional*):
            What it is called where it is shown. Where the model came from, if `None`.
        signal (`str`, *optional*):
            `"token_scores"`: the token head's score of each token. `"sequence_score"`: the difference that each token
            makes to the score of what stands up to it, which a model without a token head has too. If `None`, the token
            scores.
        has_sequence_score (`bool`, *optional*, defaults to `True`):
            `True` if the sequence head is trained. [`~TokenScorer.from_pretrained`] finds out.

    Raises:
        `TypeError`: if the model is no token reward model, or the tokenizer none.
        `ValueError`: if the head that `signal` needs is not trained.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        signal: Signal | None = None,
        has_sequence_score: bool = True,
    ):
        base = without_peft(model)
        if isinstance(base, ImplicitReward):
            has_sequence_score = False
        elif not isinstance(base, TokenRewardModel):
            raise TypeError(
                "`model` must be a TokenRewardModel, an adapter around one or an ImplicitReward, got "
                f"{type(base).__name__}: `TokenRewardModel.from_backbone` makes one of it."
            )
        check_tokenizer(tokenizer, "tokenizer")
        if signal not in (None, "token_scores", "sequence_score"):
            raise ValueError(f"`signal` must be 'token_scores' or 'sequence_score', got {signal!r}.")
        self.model, self.tokenizer = model, tokenizer
        self.name = name or base.config.name_or_path or type(base).__name__
        self.signal: Signal = signal or "token_scores"
        has_sequence_score = has_sequence_score and base.sequence_head_is_trained
        self.has_sequence_score = has_sequence_score
        is_untrained = isinstance(base, TokenRewardModel) and not base.token_head_is_trained
        if self.signal == "token_scores" and is_untrained:
            remedy = " or score with `signal='sequence_score'`" if has_sequence_score else ""
            raise ValueError(
                f"The token head of {self.name} is untrained: every token would score 0. Train it with "
                f"TokenRewardTrainer{remedy}."
            )
        if self.signal == "sequence_score" and not has_sequence_score:
            raise ValueError(f"{self.name} has no trained sequence head, so `signal='sequence_score'` means nothing.")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        tokenizer: str | os.PathLike | None = None,
        signal: Signal | None = None,
        **kwargs: Any,
    ) -> "TokenScorer":
        """Loads a model, or the adapter of one, that [`TokenRewardModel.from_pretrained`] takes, and its tokenizer.

        Args:
            name_or_path (`str` or `os.PathLike`):
                Name on the Hub or folder.
            tokenizer (`str` or `os.PathLike`, *optional*):
                Where the tokenizer is, if it is not with the model.
            signal (`str`, *optional*):
                See [`TokenScorer`].
            kwargs:
                Arguments of [`TokenRewardModel.from_pretrained`]. Such as `token` and `trust_remote_code` are the
                tokenizer's too, and `revision` where it is with the model.

        Raises:
            `ValueError`: if nothing can be loaded. The error names it.
        """
        with loading(name_or_path, "model"):
            model = TokenRewardModel.from_pretrained(name_or_path, **kwargs)
        init_kwargs = kwargs if tokenizer is None else {**kwargs, "revision": None}
        return cls(
            model,
            load_tokenizer(name_or_path if tokenizer is None else tokenizer, init_kwargs=init_kwargs),
            name=str(name_or_path),
            signal=signal,
            has_sequence_score=_has_sequence_head(read_config(name_or_path, kwargs)),
        )

    def _scores(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_size: int, numbers: Sequence[int]
    ) -> list[tuple]:
        """For each sequence of token ids, of the row with its number, its score, and the scores of its tokens from
        `starts` on.

        Raises:
            ValueError: If an id is none of the model's, or a score is not a finite number.
        """
        results = []
        scores = scores_of_ids(self.model, sequences, batch_size, self.name, numbers)
        for start, of_ids in zip(starts, scores, strict=True):
            if self.signal == "token_scores":
                per_token = of_ids.token_scores
            else:
                per_token = [b - a for a, b in zip([0.0, *of_ids.prefix_scores], of_ids.prefix_scores, strict=False)]
            results.append((of_ids.score, per_token[start:]))
        return results


def _has_sequence_head(config: Any) -> bool:
    """Whether a checkpoint holds the sequence head of the model that is loaded from it, or the model got a new one."""
    if not isinstance(config, PreTrainedConfig):  # the adapter of a token reward model, which holds both heads
        return True
    classifies_sequences = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return isinstance(config, TokenRewardModelConfig) or classifies_sequences


def score_dataset(
    dataset: Dataset | IterableDataset | Iterable[Mapping[str, Any]],
    *scorers: TokenScorer,
    limit: int | None = None,
    max_length: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> ScoredRows:
    """Scores every token of texts, or of both sides of edits.

    Texts are tokenized as [`TokenRewardTrainer`] does it: prompt and text together, with an EOS at the end, which is
    scored too; messages get the chat template.

    Args:
        dataset (`Dataset`, `IterableDataset` or `Iterable[Mapping]`):
            Rows with `text` or `completion`, a text or messages, and perhaps a `prompt`; or rows in any format of
            [`~data.preprocessing.prepare_dataset`], of whose one or two sides each is scored, with the edited or wrong
            tokens marked.
        scorers ([`TokenScorer`]):
            One model, or several to see side by side, each with its own tokens.
        limit (`int`, *optional*):
            Score the first so many rows only.
        max_length (`int`, *optional*):
            Rows with more tokens, prompt included, are dropped and counted. Defaults to what the models read. Nothing
            is truncated.
        batch_size (`int`, *optional*, defaults to `8`):
            Sequences in one forward pass.
        progress (`bool`, *optional*, defaults to `False`):
            If `True`, shows a progress bar.

    Returns:
        [`ScoredRows`]

    Raises:
        ValueError: If there are no rows, a row is malformed (the error names it), or every row is too long.
    """
    if not scorers:
        raise ValueError("`score_dataset` needs a TokenScorer to score with.")
    check_least(batch_size=(batch_size, 1))
    check_least_if_given(limit=(limit, 1), max_length=(max_length, 1))
    size = len(dataset) if isinstance(dataset, (Dataset, Sequence)) else None
    total = min((most for most in (size, limit) if most is not None), default=None)
    if isinstance(dataset, Dataset):
        dataset = plain_rows(dataset, "scored")
    readers = [_Reader(scorer, max_length) for scorer in scorers]
    names = distinct([scorer.name for scorer in scorers])
    indexed = enumerate(islice(iter(dataset), limit))
    rows, too_long = [], []
    with tqdm(total=total, desc="Scoring rows", disable=not progress) as bar:
        while chunk := list(islice(indexed, _CHUNK)):
            read: dict[int, list[_Row]] = {}
            for index, row in chunk:
                by_reader = [reader(row, index) for reader in readers]
                fitting = [of_row for of_row in by_reader if of_row is not None]
                if len(fitting) == len(readers):
                    read[index] = fitting
                else:
                    too_long.append(index)
            by_scorer = [
                _scored_texts(scorer, [of_row[i] for of_row in read.values()], batch_size)
                for i, scorer in enumerate(scorers)
            ]
            for index, *of_scorers in zip(read, *by_scorer, strict=True):
                # Both models' text of one side stand side by side.
                texts = [
                    _named(text, names[i] if len(scorers) > 1 else "")
                    for of_side in zip(*of_scorers, strict=True)
                    for i, text in enumerate(of_side)
                ]
                rows.append(ScoredRow(f"Row {index}", read[index][0].prompt, texts))
            bar.update(len(chunk))
    if not rows and not too_long:
        raise ValueError("There are no rows to score.")
    if not rows:
        raise ValueError(f"All {len(too_long)} rows have more tokens than the models read: shorten them.")
    dropped = []
    if too_long:
        first = ", ".join(map(str, too_long[:5])) + (", …" if len(too_long) > 5 else "")
        dropped.append(
            f"{len(too_long)} of {len(rows) + len(too_long)} rows dropped: they have more tokens than the models "
            f"read: {first}."
        )
    return ScoredRows(f"Token scores of {' and '.join(names)}", rows, dropped)


class _Row(NamedTuple):
    """A row as one model reads it: its number, its prompt, and its texts as ids, with where they begin and which tokens
    are edited or wrong."""

    number: int
    prompt: str
    ids: list[list[int]]
    starts: list[int]
    edited: list[list[bool]]  # of the rejected and perhaps the chosen side, or of none


class _Reader:
    """Turns rows into a scorer's tokens, by way of [`~data.preprocessing.RowPreparer`]: a lone text is a pair of equal
    sides."""

    def __init__(self, scorer: TokenScorer, max_length: int | None):
        self.tokenizer = scorer.tokenizer
        self.max_length = min(n or math.inf for n in (max_length, max_positions(scorer.model)))
        self.prepare: RowPreparer | None = None

    def __call__(self, row: Mapping[str, Any], index: int) -> _Row | None:
        """`None` for a row that is too long."""
        pair = as_pair(row, index)
        is_text, pair = pair is not row, dict(pair)
        if self.prepare is None:
            try:
                is_pair = len(row_sides(pair)) == len(SIDES)
                self.prepare = RowPreparer(row_format(pair) if is_pair else None, self.tokenizer, "scored")
            except ValueError as error:
                raise ValueError(f"Row {index} of the scored data set, {error}") from error
        prepared = self.prepare(pair, index)
        sides = ("chosen",) if is_text else prepared_sides(prepared)[::-1]
        ids = [prepared[f"{side}_ids"] for side in sides]
        if max(map(len, ids)) > self.max_length:
            return None
        masks = {side: prepared[f"{side}_completion_mask"] for side in sides}
        for side, mask in masks.items():
            if 1 not in mask:
                raise ValueError(f"Row {index}: `{side}` has no token of a completion, so there is nothing to score.")
        starts = [mask.index(1) for mask in masks.values()]
        edited = [
            list(map(bool, prepared[f"{side}_edit_mask"][start:])) for side, start in zip(sides, starts, strict=True)
        ]
        prompt = self.tokenizer.decode(ids[0][: starts[0]], skip_special_tokens=True)
        return _Row(index, prompt, ids, starts, [] if is_text else edited)


def as_pair(row: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """A lone text, in `text` or `completion`, as a pair of equal sides; a pair as it is.

    Raises:
        ValueError: If a row is neither, or malformed. The error names it.
    """
    try:
        check_row(row)
    except ValueError as error:
        raise ValueError(f"Row {index}: {error}") from error
    marked = any(row.get(f"{column}_spans") is not None for column in ("completion", "rejected"))
    if marked or all(side in row or f"{side}_ids" in row for side in SIDES):
        return row
    columns = [name for name in ("text", "completion") if name in row]
    if len(columns) != 1:
        raise ValueError(
            f"Row {index} has the columns {sorted(row)}: what is scored are texts, in a column `text` or `completion`, "
            "or pairs, `chosen` and `rejected`. A `prompt` may stand beside them."
        )
    text, prompt = row[columns[0]], row.get("prompt")
    if not isinstance(text, (str, list)):
        raise ValueError(f"Row {index}: `{columns[0]}` must be a text or messages, but is a {type(text).__name__}.")
    if prompt is not None and type(prompt) is not type(text):
        raise ValueError(f"Row {index}: `prompt` and `{columns[0]}` must both be texts, or both messages.")
    for name, value in ((columns[0], text), ("prompt", prompt)):
        if problem := unicode_problem(value):
            raise ValueError(f"Row {index}: `{name}` {problem}")
    pair = template_columns(row)
    if prompt is not None or isinstance(text, str):
        pair["prompt"] = prompt or ""
    return {**pair, "chosen": text, "rejected": text}


def _scored_texts(scorer: TokenScorer, rows: Sequence[_Row], batch_size: int) -> list[list[ScoredText]]:
    """The scored texts of each row."""
    sequences = [ids for row in rows for ids in row.ids]
    starts = [start for row in rows for start in row.starts]
    of_rows = [row.number for row in rows for _ in row.ids]
    scores = iter(scorer._scores(sequences, starts, batch_size, of_rows))
    results = []
    for row in rows:
        edits: Any = zip(row.edited, ("delete", "insert"), strict=False) if row.edited else [((), None)]
        texts = []
        for ids, start, (edited, edit) in zip(row.ids, row.starts, edits, strict=True):
            score, per_token = next(scores)
            name = {"delete": "rejected", "insert": "chosen", None: ""}[edit] if len(row.edited) == len(SIDES) else ""
            numbers = {"sequence score": score} if scorer.has_sequence_score else {}
            tokens = token_texts(ids[start:], scorer.tokenizer, context=ids[:start])
            texts.append(ScoredText(tokens, {"score": per_token}, name, numbers, edited, edit))
        results.append(texts)
    return results


def _named(text: ScoredText, model: str) -> ScoredText:
    """The text, told from others of its row by its side and, unless that is `""`, its model."""
    return replace(text, name=", ".join(filter(None, (text.name, model))))


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()) -> list[str]:
    """What each token adds to the text, special tokens by their names. Where several tokens make one character, the
    first has it and the others have `""`.

    Args:
        ids (`Sequence[int]`):
            Token ids.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Their tokenizer.
        context (`Sequence[int]`, *optional*):
            What stands before them. Some tokenizers drop the blank at the beginning of a text.
    """
    given = len(context[-1:])
    ids = [*context[-1:], *ids]

    def decode(start: int, stop: int) -> str:
        return tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False)

    texts = [""] * len(ids)
    # Two tokens at a time: a token's text depends on the presence of a token before it, not on how the text begins
    # with.
    before, done = 0, 0
    for stop in range(1, len(ids) + 1):
        added = decode(before, stop)[len(decode(before, done)) :]
        unfinished = added.endswith("\N{REPLACEMENT CHARACTER}") and stop - done < _LONGEST_CHARACTER
        if unfinished and stop < len(ids):
            continue
        texts[done] = added
        before, done = done, stop
    return texts[given:]
