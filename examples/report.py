"""The demo's report: a table, learning curves, and texts with every token coloured by its score, on one page.

[`write_report`] writes `report.html`, which needs nothing but itself (no scripts, no network), and `curves.png`, and
prints the table. What it shows comes in the classes below, so that another script can write the same report.
"""

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Token(NamedTuple):
    """A piece of a text and what a model says of it. The pieces of a text, joined, are the text.

    Args:
        text (`str`):
            The piece as it stands in the text, blanks included.
        score (`float` or `None`):
            Above 0 is good, below 0 is bad; `None` where there is no score.
        edited (`bool`, *optional*, defaults to `False`):
            Whether the edit took this piece out (in the rejected text) or put it in (in the chosen one).
    """

    text: str
    score: float | None
    edited: bool = False


class HeldOutPair(NamedTuple):
    """A preference pair that was not trained on: both answers to `prompt`, each as its tokens."""

    prompt: str
    rejected: Sequence[Token]
    chosen: Sequence[Token]


class Arm(NamedTuple):
    """One arm's answer to a prompt: the arm's name, the answer's tokens and the judge's score, if there is one."""

    name: str
    tokens: Sequence[Token]
    judge_score: float | None = None


class GeneratedAnswer(NamedTuple):
    """What each arm answered to one prompt, the start policy first."""

    prompt: str
    arms: Sequence[Arm]


class Value(NamedTuple):
    """A number and, where it is known, the interval of the estimate."""

    value: float
    low: float | None = None
    high: float | None = None


class TableRow(NamedTuple):
    """One metric; a column that it does not apply to is left out.

    Args:
        metric (`str`):
            Its name.
        values (`Mapping[str, Value | float]`):
            Column (such as an arm) to value.
        digits (`int`, *optional*, defaults to `3`):
            Number of decimals to show.
    """

    metric: str
    values: Mapping[str, Value | float]
    digits: int = 3


# Metric to its points (step, value), of one arm.
Curves = Mapping[str, Sequence[tuple[float, float]]]

# Blue and orange stay apart in all common forms of colour blindness; the arms differ in dashes and markers as well.
GOOD_RGB = (33, 102, 172)
BAD_RGB = (230, 97, 1)
STRONGEST = 0.6  # opacity of the strongest colour: the text on it stays legible on a light and on a dark page
ARM_STYLES = (("#2166ac", "-", "o"), ("#e66101", "--", "s"), ("#333333", ":", "^"), ("#7b3294", "-.", "D"))


def write_report(
    folder: str | Path,
    *,
    title: str,
    table: Sequence[TableRow],
    curves: Mapping[str, Curves],
    examples: Sequence[HeldOutPair | GeneratedAnswer],
    command: str,
    notes: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Writes `report.html` and `curves.png` into `folder`, prints the table, and returns the path of the page.

    Args:
        folder (`str` or `Path`):
            Made if it does not exist; the two files are overwritten.
        title (`str`):
            Title of the page and of the table.
        table (`Sequence[TableRow]`):
            The results. Columns appear in the order in which the rows name them first.
        curves (`Mapping[str, Curves]`):
            Arm to its learning curves. Metrics of the same name share a panel; without any, no `curves.png` is written.
        examples (`Sequence[HeldOutPair | GeneratedAnswer]`):
            Texts to show. They share one colour scale, symmetric about 0, which ends at the 98th percentile of the
            scores' magnitudes, so that single outliers do not wash out the rest.
        command (`str`):
            The command that made the report, for whoever wants to repeat it.
        notes (`Sequence[str]`, *optional*):
            Paragraphs above the results.
        console (`rich.console.Console`, *optional*):
            Where the table is printed; standard output by default.

    Raises:
        `ImportError`: if there are curves and matplotlib is not installed; [`require_matplotlib`] tells it earlier.
        `ValueError`: if a token's score is not a finite number.
    """
    _check_scores(examples)
    pages = {
        "command": f"<p>Made by <code>{_escape(command)}</code></p>",
        "notes": "".join(f"<p>{_escape(note)}</p>" for note in notes),
        "table": _table_html(table),
        "curves": _curves_html(curves),
        "examples": _examples_html(examples),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(curves.values()):
        (folder / "curves.png").write_bytes(_png(_draw(curves, _metrics(curves))))
    path = folder / "report.html"
    path.write_text(_PAGE.format(title=_escape(title), style=_STYLE, **pages), encoding="utf-8")
    print_table(table, title=title, console=console)
    return path


def print_table(table: Sequence[TableRow], *, title: str, console: Console | None = None) -> None:
    """Prints the table of the report to a terminal."""
    columns = _columns(table)
    printed = Table(title=Text(title), box=box.HORIZONTALS, show_lines=True, pad_edge=False)
    printed.add_column("metric")
    for column in columns:
        # One word a line: the columns stay narrow enough for 80 characters, and no interval is broken.
        printed.add_column(Text("\n".join(column.split())), justify="right", no_wrap=True)
    for row in table:
        cells = [_value_text(row, column) for column in columns]
        # Text, because a metric's name may hold what rich takes for markup.
        printed.add_row(Text(row.metric), *(Text("\n".join(part for part in cell if part)) for cell in cells))
    (console or Console()).print(printed)


def score_colour(score: float, limit: float) -> str:
    """Returns the CSS colour of a score: blue above 0, orange below, the stronger the nearer to `limit` (or beyond).

    The colour is laid over the page with an opacity in proportion to the score, so that 0 is the page's own colour:
    white on a light page.

    Args:
        score (`float`):
            Any finite number.
        limit (`float`):
            The magnitude that gets the strongest colour; above 0.
    """
    rgb = GOOD_RGB if score > 0 else BAD_RGB
    return _rgba(rgb, STRONGEST * min(abs(score) / limit, 1.0))


def _rgba(rgb: tuple[int, int, int], opacity: float) -> str:
    return f"rgba({rgb[0]}, {rgb[1]}, {rgb[2]}, {opacity:.3f})"


def require_matplotlib() -> None:
    """Raises an `ImportError` that says what to install if the curves could not be drawn.

    For a script that runs for minutes before it has something to draw.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'drawing the learning curves needs matplotlib: pip install "trl-tokenreward[demo]"'
        ) from error


# What the table and the page say


def _columns(table: Sequence[TableRow]) -> list[str]:
    return list(dict.fromkeys(column for row in table for column in row.values))


def _value_text(row: TableRow, column: str) -> tuple[str, str]:
    """The number and its interval; empty where there is none."""
    if column not in row.values:
        return "", ""
    value = row.values[column]
    if not isinstance(value, Value):
        value = Value(value)
    number = f"{value.value:.{row.digits}f}"
    if value.low is None or value.high is None:
        return number, ""
    return number, f"[{value.low:.{row.digits}f}, {value.high:.{row.digits}f}]"


def _table_html(table: Sequence[TableRow]) -> str:
    columns = _columns(table)
    head = "".join(f'<th scope="col">{_escape(column)}</th>' for column in columns)
    body = []
    intervals = False
    for row in table:
        cells = []
        for column in columns:
            number, interval = _value_text(row, column)
            intervals |= bool(interval)
            cells.append(f"<td>{number}{f' <small>{interval}</small>' if interval else ''}</td>")
        body.append(f'<tr><th scope="row">{_escape(row.metric)}</th>{"".join(cells)}</tr>')
    caption = "<caption>In brackets: the interval of the estimate.</caption>" if intervals else ""
    return (
        f'<div class="wide"><table>{caption}<thead><tr><th scope="col">metric</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _curves_html(curves: Mapping[str, Curves]) -> str:
    if not any(curves.values()):
        return ""
    images = []
    for metric in _metrics(curves):
        source = base64.b64encode(_png(_draw(curves, [metric]))).decode()
        images.append(f'<img alt="Learning curve: {_escape(metric)}" src="data:image/png;base64,{source}">')
    return f'<h2>Learning curves</h2><div class="curves">{"".join(images)}</div>'


def _examples_html(examples: Sequence[HeldOutPair | GeneratedAnswer]) -> str:
    if not examples:
        return ""
    limit = _limit(examples)
    pairs = [example for example in examples if isinstance(example, HeldOutPair)]
    answers = [example for example in examples if isinstance(example, GeneratedAnswer)]
    parts = [_legend_html(limit)]
    if pairs:
        parts.append("<h2>Held-out pairs</h2>")
    for pair in pairs:
        sides = _text_html("rejected", pair.rejected, limit, mark="del")
        sides += _text_html("chosen", pair.chosen, limit, mark="ins")
        parts.append(_example_html(pair.prompt, sides))
    if answers:
        parts.append("<h2>Generated answers</h2>")
    for answer in answers:
        arms = "".join(
            _text_html(arm.name, arm.tokens, limit, mark="ins", judge_score=arm.judge_score) for arm in answer.arms
        )
        parts.append(_example_html(answer.prompt, arms))
    return "".join(parts)


def _example_html(prompt: str, texts: str) -> str:
    prompt = re.sub(r"\n{2,}", "\n", prompt.strip())  # a dialogue's blank lines only take space here
    return f'<article><p class="prompt" dir="auto">{_escape(prompt)}</p><div class="texts">{texts}</div></article>'


def _text_html(name: str, tokens: Sequence[Token], limit: float, mark: str, judge_score: float | None = None) -> str:
    pieces = []
    for token in tokens:
        token = Token(*token)
        word = token.text.lstrip() or token.text
        blank = token.text[: len(token.text) - len(word)]  # left plain, or a line break would strand its colour
        piece = _escape(word)
        if token.edited:
            piece = f"<{mark}>{piece}</{mark}>"
        if token.score is not None:
            colour = score_colour(token.score, limit)
            piece = f'<span title="{token.score:+.3f}" style="background:{colour}">{piece}</span>'
        pieces.append(_escape(blank) + piece)
    judge = "" if judge_score is None else f' <small class="judge">judge {judge_score:.2f}</small>'
    return f'<section><h3>{_escape(name)}{judge}</h3><p class="text" dir="auto">{"".join(pieces)}</p></section>'


def _legend_html(limit: float) -> str:
    scale = ", ".join(
        (_rgba(BAD_RGB, STRONGEST), f"{_rgba(BAD_RGB, 0)} 50%", f"{_rgba(GOOD_RGB, 0)} 50%", _rgba(GOOD_RGB, STRONGEST))
    )
    return (
        '<div class="legend"><b>Token scores</b> '
        f'<span>&le; &minus;{limit:.2f} bad <i class="scale" style="background:linear-gradient(90deg, {scale})"></i> '
        f"good &ge; +{limit:.2f}</span> "
        "<span><del>edited out</del></span> <span><ins>edited in</ins></span> "
        '<span class="prompt">prompt</span> <span class="hint">Point at a token for its score.</span></div>'
    )


def _all_tokens(examples: Sequence[HeldOutPair | GeneratedAnswer]) -> list[Token]:
    tokens = []
    for example in examples:
        if isinstance(example, HeldOutPair):
            texts = [example.rejected, example.chosen]
        else:
            texts = [arm.tokens for arm in example.arms]
        tokens += [Token(*token) for text in texts for token in text]
    return tokens


def _check_scores(examples: Sequence[HeldOutPair | GeneratedAnswer]) -> None:
    for example in examples:
        for token in _all_tokens([example]):
            if token.score is not None and not math.isfinite(token.score):
                raise ValueError(
                    f"the score of the token {token.text!r} is {token.score}, in the example with the prompt "
                    f"{example.prompt!r}; a token without a score has None"
                )


def _limit(examples: Sequence[HeldOutPair | GeneratedAnswer]) -> float:
    magnitudes = sorted(abs(token.score) for token in _all_tokens(examples) if token.score is not None)
    if not magnitudes or magnitudes[-1] == 0:
        return 1.0
    # Where nearly all scores are 0 the percentile is 0 as well, and the greatest has to do.
    return magnitudes[round(0.98 * (len(magnitudes) - 1))] or magnitudes[-1]


def _escape(text: str) -> str:
    """HTML text or attribute value. What no page may hold (control characters, half surrogates) is shown, not kept."""
    visible = "".join(
        chr(0x2400 + ord(char))
        if ord(char) < 32 and char not in "\n\t"
        else "\N{REPLACEMENT CHARACTER}"
        if 0xD800 <= ord(char) < 0xE000
        else char
        for char in text.replace("\r\n", "\n")
    )
    return html.escape(visible, quote=True)


# Learning curves


def _metrics(curves: Mapping[str, Curves]) -> list[str]:
    return list(dict.fromkeys(metric for of_arm in curves.values() for metric in of_arm))


def _draw(curves: Mapping[str, Curves], metrics: Sequence[str]) -> "Figure":
    """One panel for each metric, one line for each arm."""
    require_matplotlib()
    # Not pyplot: it would choose a display and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.3 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    lines = {}
    for panel, metric in zip(axes, metrics, strict=False):
        for (arm, of_arm), (colour, dashes, marker) in zip(curves.items(), _cycle(len(curves)), strict=True):
            points = of_arm.get(metric, ())
            steps, values = [step for step, _ in points], [value for _, value in points]
            [line] = panel.plot(
                steps,
                values,
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=3.5,
                markevery=max(1, len(steps) // 12),
            )
            lines.setdefault(arm, line)
        panel.set_title(_plain(metric), fontsize=11)
        panel.set_xlabel("update")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[len(metrics) :]:
        panel.set_visible(False)
    figure.legend(
        list(lines.values()),
        [_plain(arm) for arm in lines],
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
    )
    return figure


def _cycle(number: int) -> list[tuple[str, str, str]]:
    return [ARM_STYLES[i % len(ARM_STYLES)] for i in range(number)]


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


# The page

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{notes}
{command}
<h2>Results</h2>
{table}
{curves}
{examples}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --muted: #59636e; --line: #d5dae0; --box: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e9ecef; --muted: #a3acb7; --line: #363c44; --box: #1d2126; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .9rem; margin: 0 0 .3rem; }
main > p { margin: .35rem 0; max-width: 60rem; color: var(--muted); overflow-wrap: anywhere; }
code { background: var(--box); border: 1px solid var(--line); border-radius: 4px; padding: .1rem .35rem; color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--muted); font-size: .85rem; padding-top: .4rem; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
tr > :first-child { text-align: left; padding-left: 0; }
thead th { border-bottom-width: 2px; }
tbody th { font-weight: 400; }
small { color: var(--muted); font-size: .85em; font-weight: 400; }
@media (max-width: 48rem) {
  th, td { white-space: normal; padding: .4rem .5rem; font-size: .9rem; vertical-align: top; }
  td small { display: block; white-space: nowrap; }
}
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
.curves img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; align-items: center;
  margin-top: 2.25rem; padding: .5rem 0; background: var(--page); border-bottom: 1px solid var(--line); font-size: .9rem; }
.legend + h2 { margin-top: 1.25rem; }
.scale { display: inline-block; width: 9rem; max-width: 35vw; height: .9rem; vertical-align: -.12rem; border: 1px solid var(--line); }
.hint, .judge { color: var(--muted); }
.judge { margin-left: .5rem; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem 1rem; margin: 0 0 1rem; }
.prompt { color: var(--muted); }
article > .prompt { margin: 0 0 .7rem; font-size: .92rem; }
.prompt, .text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .9rem 1.4rem; }
.text { margin: 0; line-height: 1.9; }
.text span { padding: .12em 0; border-radius: 2px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
ins { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: .22em; }
del { text-decoration: line-through; text-decoration-thickness: 2px; }
"""
