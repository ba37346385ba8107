"""Texts with a number for every token: what token reward models say of them, and how that is shown.

[`score_dataset`] makes [`ScoredRows`] of texts, [`~ppo.completion_log.read_completions`] of the completions of a training run.
They show themselves on a terminal and in a notebook, and [`ScoredRows.write_page`] writes a page.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset, IterableDataset
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from ..data.preprocessing import SIDES, RowPreparer, row_format
from ..inspection.report import visible
from ..nn.unpadding import without_peft
from ..utils.loading import check_source, load_tokenizer
from ..views.html import LOW, colour_limit, number
from .configuration import TokenRewardModelConfig
from .modeling import TextScores, TokenRewardModel, scores_of_ids


Signal = Literal["token_scores", "sequence_score"]

# Rows that are scored before the next are read.
_CHUNK = 256
# The bytes of one character, so the most tokens that may have to wait for each other.
_LONGEST_CHARACTER = 4


class Shown(NamedTuple):
    """The tokens that are shown as one piece: a character may be made of several.

    Args:
        text (`str`):
            Their text.
        start, stop (`int`):
            The tokens, `tokens[start:stop]`.
    """

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class ScoredText:
    """A text of L tokens, with one or more numbers for each.

    Args:
        tokens (`Sequence[str]`):
            What each token adds to the text: joined, they are the text. A token that only completes the character of the
            token before it has `""`.
        series (`Mapping[str, Sequence[float | None]]`):
            Name to L numbers, `None` where there is none. The first series is the one that is coloured.
        name (`str`, *optional*):
            What tells the text from the others of its row: a side, or a model.
        numbers (`Mapping[str, float]`, *optional*):
            Numbers of the whole text, by name.
        edited (`Sequence[bool]`, *optional*):
            L: whether the edit took this token out, or put it in.
        edit (`"delete"` or `"insert"`, *optional*):
            Which of the two it did. `None`: the text is no side of an edit.

    Raises:
        ValueError: If lengths differ, or a number is not finite.
    """

    tokens: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    name: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    edited: Sequence[bool] = ()
    edit: Literal["delete", "insert"] | None = None

    def __post_init__(self):
        lengths = {name: len(values) for name, values in self.series.items()}
        if self.edit is not None:
            lengths["edited"] = len(self.edited)
        for name, length in lengths.items():
            if length != len(self.tokens):
                raise ValueError(f"`{name}` has {length} entries for {len(self.tokens)} tokens.")
        for name, values in self.series.items():
            for token, value in zip(self.tokens, values, strict=True):
                if value is not None and not math.isfinite(value):
                    raise ValueError(
                        f"the {name} of the token {token!r} is {value}; a token without a {name} has None."
                    )

    @classmethod
    def from_text_scores(cls, scores: TextScores) -> "ScoredText":
        """What [`TokenRewardModel.score_texts`] gives. Characters that are in no token's span go to the token after them."""
        tokens, reached = [], 0
        for _, end in scores.spans:
            tokens.append(scores.text[reached : max(reached, end)])
            reached = max(reached, end)
        if tokens:
            tokens[-1] += scores.text[reached:]
        return cls(tokens, {"score": scores.token_scores}, numbers={"sequence score": scores.score})

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def pieces(self) -> list[Shown]:
        """The tokens as they are shown, in order. Those without a text of their own are shown with the one before, or, at
        the beginning, with the one after."""
        starts = [i for i, token in enumerate(self.tokens) if token]
        if not starts:
            return []
        stops = [*starts[1:], len(self.tokens)]
        return [
            Shown(self.tokens[start], start if i else 0, stop)
            for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]

    def mean(self, name: str, piece: Shown) -> float | None:
        """The mean of a series over the tokens of a piece: what it is coloured by."""
        values = [value for value in self.series[name][piece.start : piece.stop] if value is not None]
        return sum(values) / len(values) if values else None

    def is_edited(self, piece: Shown) -> bool:
        return self.edit is not None and any(self.edited[piece.start : piece.stop])


@dataclass(frozen=True)
class ScoredRow:
    """Texts that belong together, such as both sides of an edit, or one text as two models see it.

    Args:
        name (`str`):
            Its heading.
        prompt (`str`):
            What stands before the texts.
        texts (`Sequence[ScoredText]`):
            The texts.
        step (`int`, *optional*):
            The training step at which they were sampled.
    """

    name: str
    prompt: str
    texts: Sequence[ScoredText]
    step: int | None = None

    @property
    def columns(self) -> int:
        """How many texts stand side by side where there is room."""
        return len(self.texts) if len(self.texts) < 4 else 2


@dataclass(frozen=True)
class ScoredRows(Sequence):
    """Scored texts, a sequence of [`ScoredRow`].

    On a terminal, `rich.print` prints them; at the end of a notebook's cell they show themselves.

    Args:
        title (`str`):
            What they are, such as the name of the model.
        rows (`Sequence[ScoredRow]`):
            The rows. All their texts have the same series.
        left_out (`Sequence[str]`, *optional*):
            What was left out and why, one sentence each.
    """

    title: str
    rows: Sequence[ScoredRow]
    left_out: Sequence[str] = ()

    def __getitem__(self, index):
        return self.rows[index] if isinstance(index, int) else ScoredRows(self.title, self.rows[index], self.left_out)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def limits(self) -> dict[str, float]:
        """Series to the magnitude that gets the strongest colour, see [`~views.html.colour_limit`]."""
        texts = [text for row in self.rows for text in row.texts]
        names = dict.fromkeys(name for text in texts for name in text.series)
        return {
            name: colour_limit(v for text in texts for v in text.series.get(name, ()) if v is not None)
            for name in names
        }

    def write_page(self, path: str | Path, *, limit: int = 1000, seed: int = 0) -> Path:
        """Writes them as a page, see [`~views.page.write_page`]."""
        from ..views.page import write_page

        return write_page(self, path, limit=limit, seed=seed)

    def _repr_html_(self) -> str:
        from ..views.page import notebook_html

        return notebook_html(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(visible(self.title), style="bold")
        for sentence in self.left_out:
            yield Text(sentence)
        for series, limit in islice(self.limits.items(), 1):
            yield _legend(series, limit)
            for row in self.rows:
                yield Text("")
                yield from _row_lines(row, series, limit, console, options.max_width)


# --- scoring -------------------------------------------------------------------------------------------------------


class TokenScorer:
    """
    A token reward model, ready to score texts.

    Args:
        model ([`TokenRewardModel`] or `PeftModel`):
            The model, or an adapter around one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, a fast one.
        name (`str`, *optional*):
            What it is called where it is shown. Where the model came from, if `None`.
        signal (`str`, *optional*):
            `"token_scores"`: what the token head says of each token. `"sequence_score"`: the difference that each token
            makes to the score of what stands up to it, which a model without a token head has too. If `None`, the token
            scores.
        has_sequence_score (`bool`, *optional*, defaults to `True`):
            Whether the sequence head means anything. [`~TokenScorer.from_pretrained`] knows.

    Raises:
        `TypeError`: if the model is no token reward model.
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
        if not isinstance(base, TokenRewardModel):
            raise TypeError(
                f"`model` must be a TokenRewardModel or an adapter around one, got {type(base).__name__}: "
                "`TokenRewardModel.from_backbone` makes one of it."
            )
        if signal not in (None, "token_scores", "sequence_score"):
            raise ValueError(f"`signal` must be 'token_scores' or 'sequence_score', got {signal!r}.")
        self.model, self.tokenizer = model, tokenizer
        self.name = name or base.config.name_or_path or type(base).__name__
        self.signal: Signal = signal or "token_scores"
        self.has_sequence_score = has_sequence_score
        if self.signal == "token_scores" and not base.token_head_is_trained:
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
        """Loads a model that [`TokenRewardModel.from_pretrained`] takes, and its tokenizer.

        Args:
            name_or_path (`str` or `os.PathLike`):
                Name on the Hub or folder.
            tokenizer (`str` or `os.PathLike`, *optional*):
                Where the tokenizer is, if it is not with the model.
            signal (`str`, *optional*):
                See [`TokenScorer`].
            kwargs:
                Arguments of [`TokenRewardModel.from_pretrained`].
        """
        check_source(name_or_path, "model")
        model = TokenRewardModel.from_pretrained(name_or_path, **kwargs)
        config = AutoConfig.from_pretrained(name_or_path)
        classifies_sequences = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        return cls(
            model,
            load_tokenizer(name_or_path if tokenizer is None else tokenizer),
            name=str(name_or_path),
            signal=signal,
            has_sequence_score=isinstance(config, TokenRewardModelConfig) or classifies_sequences,
        )

    def _scores(self, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_size: int) -> list[tuple]:
        """For each sequence of token ids its score, and the scores of its tokens from `starts` on.

        Raises:
            ValueError: If an id is none of the model's, or a score is not a finite number.
        """
        known = without_peft(self.model).get_input_embeddings().num_embeddings
        if (highest := max((max(ids) for ids in sequences), default=0)) >= known:
            raise ValueError(
                f"The tokenizer gives the id {highest}, but {self.name} knows {known} tokens: this is not its tokenizer."
            )
        results = []
        for start, of_ids in zip(starts, scores_of_ids(self.model, sequences, batch_size), strict=True):
            if self.signal == "token_scores":
                per_token = of_ids.token_scores
            else:
                per_token = [b - a for a, b in zip([0.0, *of_ids.prefix_scores], of_ids.prefix_scores, strict=False)]
            if not all(map(math.isfinite, (of_ids.score, *per_token))):
                raise ValueError(f"{self.name} gives scores that are not finite numbers.")
            results.append((of_ids.score, per_token[start:]))
        return results


def score_dataset(
    dataset: Dataset | IterableDataset | Iterable[Mapping[str, Any]],
    *scorers: TokenScorer,
    limit: int | None = None,
    max_length: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> ScoredRows:
    """Scores every token of texts, or of both sides of edits.

    Texts are tokenised as [`TokenRewardTrainer`] does it: prompt and text together, with an EOS at the end, which is scored
    too; messages get the chat template.

    Args:
        dataset (`Dataset`, `IterableDataset` or `Iterable[Mapping]`):
            Rows with `text` or `completion`, a text or messages, and perhaps a `prompt`; or preference rows in any format
            of [`~data.preprocessing.prepare_dataset`], whose sides are both scored, with the edited tokens marked.
        scorers ([`TokenScorer`]):
            One model, or several to see side by side, each with its own tokens.
        limit (`int`, *optional*):
            Score the first so many rows only.
        max_length (`int`, *optional*):
            Rows with more tokens, prompt included, are left out and counted. Defaults to what the models read. Nothing is
            truncated.
        batch_size (`int`, *optional*, defaults to `8`):
            Sequences in one forward pass.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`ScoredRows`]

    Raises:
        ValueError: If there are no rows, a row is malformed (the error names it), or every row is too long.
    """
    if not scorers:
        raise ValueError("`score_dataset` needs a TokenScorer to score with.")
    for name, value in {"limit": limit, "max_length": max_length, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if isinstance(dataset, Dataset):
        total = len(dataset)
        dataset = dataset.with_format(None)
    else:
        total = len(dataset) if isinstance(dataset, Sequence) else None
    total = limit if total is None or limit is not None and limit < total else total
    readers = [_Reader(scorer, max_length) for scorer in scorers]
    names = _distinct([scorer.name for scorer in scorers])
    indexed = enumerate(islice(iter(dataset), limit))
    rows, too_long = [], []
    with tqdm(total=total, desc="Scoring rows", disable=not progress) as bar:
        while chunk := list(islice(indexed, _CHUNK)):
            read = {index: [reader(row, index) for reader in readers] for index, row in chunk}
            too_long += [index for index, of_row in read.items() if None in of_row]
            read = {index: of_row for index, of_row in read.items() if None not in of_row}
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
    left_out = []
    if too_long:
        first = ", ".join(map(str, too_long[:5])) + (", …" if len(too_long) > 5 else "")
        left_out.append(
            f"{len(too_long)} of {len(rows) + len(too_long)} rows left out, for they have more tokens than the models "
            f"read: {first}."
        )
    return ScoredRows(f"Token scores of {' and '.join(names)}", rows, left_out)


class _Row(NamedTuple):
    """A row as one model reads it: its prompt, and its texts as ids, with where they begin and which tokens are edited."""

    prompt: str
    ids: list[list[int]]
    starts: list[int]
    edited: list[list[bool]]  # of both sides, or of none


class _Reader:
    """Turns rows into a scorer's tokens, by way of [`~data.preprocessing.RowPreparer`]: a lone text is a pair of equal sides."""

    def __init__(self, scorer: TokenScorer, max_length: int | None):
        self.tokenizer = scorer.tokenizer
        most = without_peft(scorer.model).config.max_position_embeddings
        self.max_length = min((n for n in (max_length, most) if n is not None), default=math.inf)
        self.prepare: RowPreparer | None = None

    def __call__(self, row: Mapping[str, Any], index: int) -> _Row | None:
        """`None` for a row that is too long."""
        pair = _as_pair(row, index)
        is_pair = pair is row
        if self.prepare is None:
            self.prepare = RowPreparer(row_format(pair), self.tokenizer, "scored")
        prepared = self.prepare(pair, index)
        sides = ("rejected", "chosen") if is_pair else ("chosen",)
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
        return _Row(prompt, ids, starts, edited if is_pair else [])


def _as_pair(row: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    if all(side in row or f"{side}_ids" in row for side in SIDES):
        return row
    columns = [name for name in ("text", "completion") if name in row]
    if len(columns) != 1:
        raise ValueError(
            f"Row {index} has the columns {sorted(row)}: what is scored are texts, in a column `text` or `completion`, or "
            "pairs, `chosen` and `rejected`. A `prompt` may stand beside them."
        )
    text, prompt = row[columns[0]], row.get("prompt")
    if not isinstance(text, (str, list)):
        raise ValueError(f"Row {index}: `{columns[0]}` must be a text or messages, but is a {type(text).__name__}.")
    if prompt is None:
        prompt = "" if isinstance(text, str) else []
    if type(prompt) is not type(text):
        raise ValueError(f"Row {index}: `prompt` and `{columns[0]}` must both be texts, or both messages.")
    return {"prompt": prompt, "chosen": text, "rejected": text}


def _scored_texts(scorer: TokenScorer, rows: Sequence[_Row], batch_size: int) -> list[list[ScoredText]]:
    """For each row its texts, scored."""
    sequences = [ids for row in rows for ids in row.ids]
    starts = [start for row in rows for start in row.starts]
    scores = iter(scorer._scores(sequences, starts, batch_size))
    results = []
    for row in rows:
        edits = zip(row.edited, ("delete", "insert"), strict=True) if row.edited else [((), None)]
        texts = []
        for ids, start, (edited, edit) in zip(row.ids, row.starts, edits, strict=True):
            score, per_token = next(scores)
            name = {"delete": "rejected", "insert": "chosen", None: ""}[edit]
            numbers = {"sequence score": score} if scorer.has_sequence_score else {}
            tokens = token_texts(ids[start:], scorer.tokenizer, context=ids[:start])
            texts.append(ScoredText(tokens, {"score": per_token}, name, numbers, edited, edit))
        results.append(texts)
    return results


def _named(text: ScoredText, model: str) -> ScoredText:
    if not model:
        return text
    name = f"{text.name}, {model}" if text.name else model
    return ScoredText(text.tokens, text.series, name, text.numbers, text.edited, text.edit)


def _distinct(names: Sequence[str]) -> list[str]:
    """Equal names, of one model with two signals, say, get a number."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()) -> list[str]:
    """What each token adds to the text, special tokens by their names. Where several tokens make one character, the first
    has it and the others have `""`.

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
    # Two tokens at a time: what a token adds depends on whether there is one before it, not on what the text begins with.
    before, done = 0, 0
    for stop in range(1, len(ids) + 1):
        added = decode(before, stop)[len(decode(before, done)) :]
        unfinished = added.endswith("\N{REPLACEMENT CHARACTER}") and stop - done < _LONGEST_CHARACTER
        if unfinished and stop < len(ids):
            continue
        texts[done] = added
        before, done = done, stop
    return texts[given:]


# --- on a terminal -------------------------------------------------------------------------------------------------

# Share of the scale, either way, from where on a style is used. On a light and on a dark terminal each can be read.
_GOOD_STYLES = (
    (0.75, Style(color="#ffffff", bgcolor="#2166ac")),
    (0.4, Style(color="#000000", bgcolor="#92c5de")),
    (0.1, Style(color="#4393c3")),
)
_BAD_STYLES = (
    (0.75, Style(color="#000000", bgcolor="#e66101")),
    (0.4, Style(color="#000000", bgcolor="#fdb863")),
    (0.1, Style(color="#d97706")),
)
_SIDE_BY_SIDE = 100  # columns of a terminal from where on texts stand side by side


def _style(value: float, limit: float) -> Style:
    share = value / limit
    styles = _GOOD_STYLES if share > 0 else _BAD_STYLES
    style = next((style for least, style in styles if abs(share) >= least), Style())
    return style + Style(bold=True) if share <= -LOW else style


def _legend(series: str, limit: float) -> Text:
    text = Text(f"{series}: ")
    for share in (-1, -0.5, -0.25, 0, 0.25, 0.5, 1):
        sign = "-" if share < 0 else "+" if share else ""
        text.append(f" {sign}{number(abs(share) * limit)} ", style=_style(share * limit, limit))
    return text.append(f"  bold: -{number(LOW * limit)} or less", style="dim")


def _row_lines(row: ScoredRow, series: str, limit: float, console: Console, width: int) -> Iterator[Any]:
    yield Text(row.name, style="bold")
    if prompt := visible(compact(row.prompt)):
        yield from _indented(Text(prompt, style="dim"), console, width)
    cells = [_text_cell(text, series, limit) for text in row.texts]
    if row.columns > 1 and width >= _SIDE_BY_SIDE:
        grid = Table.grid(padding=(0, 0, 0, 2), pad_edge=True, expand=True)
        for _ in range(row.columns):
            grid.add_column(ratio=1)
        for i in range(0, len(cells), row.columns):
            grid.add_row(*cells[i : i + row.columns])
        yield grid
    else:
        for cell in cells:
            yield from _indented(cell, console, width)


def _indented(text: Text, console: Console, width: int) -> Iterator[Text]:
    """Its lines, without the blanks at their ends that rich's own padding adds."""
    for line in text.wrap(console, max(1, width - 2)):
        yield Text("  ").append_text(line)


def _text_cell(text: ScoredText, series: str, limit: float) -> Text:
    head = ", ".join([*filter(None, [visible(text.name)]), *numbers_text(text.numbers)])
    cell = Text(f"{head}\n" if head else "", style="")
    cell.stylize("bold", 0, len(head))
    marks = {"delete": ("[-", "-]", "strike"), "insert": ("{+", "+}", "underline")}
    inside = False
    for piece in text.pieces():
        edited = text.is_edited(piece)
        blank, word = split_blank(shown_blanks(visible(piece.text)))
        if inside and not edited:
            cell.append(marks[text.edit][1])
        cell.append(blank)
        if edited and not inside:
            cell.append(marks[text.edit][0])
        inside = edited
        value = text.mean(series, piece)
        style = Style() if value is None else _style(value, limit)
        cell.append(word, style=style + Style.parse(marks[text.edit][2]) if edited else style)
    if inside:
        cell.append(marks[text.edit][1])
    return cell.append(_extremes(text, series), style="dim")


def _extremes(text: ScoredText, series: str, number: int = 3) -> str:
    """The lowest and the highest tokens in words: what can be read without colours, and in a pipe."""
    values = [(value, piece.text) for piece in text.pieces() if (value := text.mean(series, piece)) is not None]
    parts = []
    for name, sign in (("lowest", 1), ("highest", -1)):
        chosen = sorted(values, key=lambda pair: sign * pair[0])[:number]
        tokens = (f'"{shown_blanks(visible(token)).strip()}" {value:+.2f}' for value, token in chosen)
        parts.append(f"{name}: {', '.join(tokens)}")
    return "\n" + "; ".join(parts) if values else ""


def compact(prompt: str) -> str:
    """A prompt without a dialogue's blank lines, which would only take space."""
    return re.sub(r"\n{2,}", "\n", prompt.strip())


def shown_blanks(text: str) -> str:
    """A token's text with the white space visible that is not between words: line breaks, tabs, and tokens of nothing
    else."""
    if not text.strip(" "):
        return "␣" * len(text)
    return text.replace("\n", "↵\n").replace("\t", "⇥\t")


def split_blank(text: str) -> tuple[str, str]:
    """The blanks that a word begins with, and the word. They stay plain, or a line break would strand their colour."""
    word = text.lstrip(" ")
    return text[: len(text) - len(word)], word


def numbers_text(numbers: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:+.3f}" for name, value in numbers.items()]
