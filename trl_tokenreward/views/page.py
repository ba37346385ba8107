"""Scored texts as HTML: as a page, for a notebook, and as a part of other pages."""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.text import visible
from .colours import BAD_RGB, GOOD_RGB, LOW, STRONGEST, score_colour
from .html import escape, legend, page, read_asset, write
from .scored_text import ScoredRow, ScoredText, Shown, compact, numbers_text, shown_blanks, split_blank


if TYPE_CHECKING:
    from .scored_rows import ScoredRows


# What the ends of a series' scale are called.
ENDS = {
    "score": ("bad", "good"),
    "KL": ("likelier before", "likelier now"),
    "advantage": ("worse than expected", "better"),
}
# For the legend.
MARKS = "<span><del>edited out</del></span> <span><ins>edited in</ins></span>"
_NOTEBOOK_ROWS = 20

_BODY, _STYLE, _SCRIPT = (read_asset(__file__, f"scores.{kind}") for kind in ("html", "css", "js"))
# For a page with the common style, and for a notebook's cell.
TEXT_STYLE = read_asset(__file__, "text.css")
# Everything below one class: nothing else in the notebook changes.
_NOTEBOOK_STYLE = ".scored { --line: rgba(128, 128, 128, .5); }" + re.sub(
    r"(?m)^(?=[.a-z])", ".scored ", "\n" + TEXT_STYLE + read_asset(__file__, "notebook.css")
)


def write_page(rows: "ScoredRows", path: str | Path, *, limit: int = 1000, seed: int = 0) -> Path:
    """Writes scored texts as a self-contained page.

    A token's numbers appear on hover, on touch and, if its text has the focus, with the arrow keys.

    Args:
        rows ([`ScoredRows`]):
            What to show.
        path (`str` or `Path`):
            The file, which is overwritten; its folder is made if it does not exist.
        limit (`int`, *optional*, defaults to `1000`):
            Of more rows than that, the page has a sample; of a training run, steps at even distances.
        seed (`int`, *optional*, defaults to `0`):
            The same seed draws the same sample.

    Returns:
        `Path`: the file.
    """
    if not rows:
        raise ValueError("There are no scored texts to show.")
    chosen, note = _chosen(rows, limit, seed)
    limits = rows.limits
    series = [
        {"name": name, "limit": of_series, "ends": ENDS.get(name, ("low", "high"))}
        for name, of_series in limits.items()
    ]
    steps = sorted({row.step for row in chosen if row.step is not None})
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt for row in chosen))}
    body = _BODY.format(
        notes="".join(f"<p>{escape(sentence)}</p>" for sentence in [note, *rows.dropped]),
        series=escape(json.dumps(series)),
        colours=escape(json.dumps({"strongest": STRONGEST, "low": LOW, "good": GOOD_RGB, "bad": BAD_RGB})),
        series_options="".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(limits)),
        orders="".join(f'<option value="{key}">{name}</option>' for key, name in _orders(chosen).items()),
        steps=escape(json.dumps(steps)),
        prompts="".join(
            f'<option value="{prompts[prompt]}">{times} \u00d7 {escape(" ".join(prompt.split())[:100])}</option>'
            for prompt, times in _recurring(chosen).items()
        ),
        legend=_legend(chosen, limits),
        rows="\n".join(_article(i, row, limits, prompts[row.prompt]) for i, row in enumerate(chosen)),
    )
    return write(path, page(rows.title, body, style=TEXT_STYLE + _STYLE, script=_SCRIPT))


def notebook_html(rows: "ScoredRows") -> str:
    """Scored texts for the output of a notebook's cell: without scripts, and with a style that reaches nothing else."""
    note = ""
    if len(rows) > _NOTEBOOK_ROWS:
        note = f"<p>{_NOTEBOOK_ROWS} of {len(rows)} rows are shown; <code>write_page</code> has more.</p>"
    notes = "".join(f"<p>{escape(sentence)}</p>" for sentence in rows.dropped)
    limits = rows.limits
    scale = f'<div class="legend">{_legend(rows.rows, limits)}</div>'
    articles = "".join(
        f'<div class="row">{_bold(row.name)}{prompt_html(row.prompt)}{_texts(row, limits)}</div>'
        for row in rows[:_NOTEBOOK_ROWS]
    )
    return (
        f'<div class="scored"><style>{_NOTEBOOK_STYLE}</style>{_bold(rows.title)}{notes}{scale}{articles}{note}</div>'
    )


def text_html(text: ScoredText, limits: Mapping[str, float], with_values: bool = False) -> str:
    """A text as a paragraph of coloured tokens; its numbers are their titles.

    Args:
        text ([`ScoredText`]):
            The text. Its first series is coloured.
        limits (`Mapping[str, float]`):
            Series to the magnitude that gets the strongest colour.
        with_values (`bool`, *optional*, defaults to `False`):
            If `True`, the tokens carry all their numbers, for a script.
    """
    tokens = "".join(_token(text, piece, limits, with_values) for piece in text.pieces())
    return f'<p class="text" dir="auto">{tokens}</p>'


def _token(text: ScoredText, piece: Shown, limits: Mapping[str, float], with_values: bool) -> str:
    blank, word = split_blank(shown_blanks(visible(piece.text)))
    shown = escape(word)
    if text.is_edited(piece):
        tag = "del" if text.edit == "delete" else "ins"
        shown = f"<{tag}>{shown}</{tag}>"
    values = [text.mean(name, piece) for name in text.series]
    if any(value is not None for value in values):
        style = kind = data = ""
        if values[0] is not None:
            limit = limits[next(iter(text.series))]
            style = f' style="background:{score_colour(values[0], limit)}"'
            kind = ' class="low"' if values[0] <= -LOW * limit else ""
        if with_values:
            data = f' data-v="{" ".join("" if value is None else f"{value:.4g}" for value in values)}"'
        shown = f'<span title="{escape(_numbers(text, piece))}"{kind}{style}{data}>{shown}</span>'
    return escape(blank) + shown


def _numbers(text: ScoredText, piece: Shown) -> str:
    """All the numbers of all the tokens of a piece."""
    lines = []
    for name, values in text.series.items():
        numbers = ", ".join(f"{value:+.3f}" for value in values[piece.start : piece.stop] if value is not None)
        if numbers:
            lines.append(numbers if len(text.series) == 1 else f"{name} {numbers}")
    return "\n".join(lines)


def _chosen(rows: "ScoredRows", limit: int, seed: int) -> tuple[Sequence[ScoredRow], str]:
    if len(rows) <= limit:
        return rows.rows, f"All {len(rows)} rows."
    steps = sorted({row.step for row in rows if row.step is not None})
    if not steps:
        drawn = sorted(random.Random(seed).sample(range(len(rows)), limit))
        return [rows[i] for i in drawn], f"{limit} of {len(rows)} rows, drawn at random with the seed {seed}."
    number = max(2, limit * len(steps) // len(rows))
    kept = {steps[round(i * (len(steps) - 1) / (number - 1))] for i in range(number)}
    return [row for row in rows if row.step in kept], f"{len(kept)} of {len(steps)} logged steps, at even distances."


def _recurring(rows: Sequence[ScoredRow]) -> dict[str, int]:
    """Prompts that were answered at several steps, and at how many; the most frequent first."""
    counts = Counter(prompt for prompt, step in {(row.prompt, row.step) for row in rows} if step is not None)
    return {
        prompt: times for prompt, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if times > 1
    }


def _orders(rows: Sequence[ScoredRow]) -> dict[str, str]:
    orders = {"index": "as they come", "lowest": "lowest token first"}
    if any(row.texts and row.texts[0].numbers for row in rows):
        orders["score"] = "lowest text first"
    if any(len(row.texts) > 1 for row in rows):
        orders["spread"] = "least alike first"
    return orders


def _keys(row: ScoredRow) -> dict[str, float]:
    """What the rows can be ordered by."""
    coloured = [[v for v in values if v is not None] for text in row.texts for values in [*text.series.values()][:1]]
    numbers = [number for text in row.texts for number in [*text.numbers.values()][:1]]
    # Models of token scores alone have no number of a whole text.
    has_numbers = len(numbers) == len(row.texts)
    alike = numbers if has_numbers else [sum(values) / len(values) for values in coloured if values]
    return {
        "lowest": min((v for values in coloured for v in values), default=0.0),
        "score": min(numbers, default=0.0),
        "spread": min(alike, default=0.0) - max(alike, default=0.0),
    }


def _article(index: int, row: ScoredRow, limits: Mapping[str, float], prompt: int) -> str:
    keys = "".join(f' data-{name}="{value:.6g}"' for name, value in {"index": index, **_keys(row)}.items())
    step = "" if row.step is None else f' data-step="{row.step}"'
    return (
        f'<article{keys}{step} data-prompt="{prompt}"><h2>{escape(row.name)}</h2>'
        f"{prompt_html(row.prompt)}{_texts(row, limits, with_values=True)}</article>"
    )


def _bold(name: str) -> str:
    return f"<b>{escape(name)}</b>" if name else ""


def prompt_html(prompt: str) -> str:
    """A prompt as a dimmed paragraph."""
    text = compact(prompt)
    return f'<p class="prompt" dir="auto">{escape(text)}</p>' if text else ""


def _texts(row: ScoredRow, limits: Mapping[str, float], with_values: bool = False) -> str:
    sections = []
    for text in row.texts:
        numbers = ", ".join(numbers_text(text.numbers))
        head = f"{_bold(text.name)} <small>{escape(numbers)}</small>" if text.name or numbers else ""
        sections.append(f'<div class="side"><div class="head">{head}</div>{text_html(text, limits, with_values)}</div>')
    return f'<div class="texts" style="--columns:{row.columns}">{"".join(sections)}</div>'


def _legend(rows: Sequence[ScoredRow], limits: Mapping[str, float]) -> str:
    if not limits:
        return ""
    series, limit = next(iter(limits.items()))
    marks = [MARKS] if any(text.edit is not None for row in rows for text in row.texts) else []
    marks += ['<span class="prompt">prompt</span>'] if any(row.prompt.strip() for row in rows) else []
    return " ".join([legend(limit, *ENDS.get(series, ("low", "high"))), *marks])
