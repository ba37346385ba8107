"""The demo's report: a table, learning curves, and texts with every token coloured by its score, on one page.

[`write_report`] writes `report.html`, which is self-contained (no scripts, no network), and `curves.png`, and
prints the table. Its input is the classes below, so another script can write the same report.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_tokenreward.views.colours import colour_limit
from trl_tokenreward.views.html import escape, legend, page, write
from trl_tokenreward.views.page import MARKS, TEXT_STYLE, prompt_html, text_html
from trl_tokenreward.views.scored_text import ScoredText


if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Token(NamedTuple):
    """A piece of a text and its score. The pieces of a text, joined, are the text.

    Args:
        text (`str`):
            The piece as it stands in the text, blanks included.
        score (`float` or `None`):
            Above 0 is good, below 0 is bad; `None` where there is no score.
        edited (`bool`, *optional*, defaults to `False`):
            `True` if the edit deleted this piece (in the rejected text) or inserted it (in the chosen one).
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
    """One metric. Leave out the columns that it does not apply to.

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

# The arms differ in colour, in dashes and in markers.
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
            The command that made the report, to repeat it.
        notes (`Sequence[str]`, *optional*):
            Paragraphs above the results.
        console (`rich.console.Console`, *optional*):
            Where the table is printed; standard output by default.

    Raises:
        `ImportError`: if there are curves and matplotlib is not installed; [`require_matplotlib`] tells it earlier.
        `ValueError`: if a token's score is not a finite number.
    """
    parts = {
        "command": f"<p>Made by <code>{escape(command)}</code></p>",
        "notes": "".join(f"<p>{escape(note)}</p>" for note in notes),
        "table": _table_html(table),
        "curves": _curves_html(curves),
        "examples": _examples_html(examples),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(curves.values()):
        (folder / "curves.png").write_bytes(_png(_draw(curves, _metrics(curves))))
    report = page(title, _BODY.format(**parts), style=TEXT_STYLE + _STYLE, images=True)
    path = write(folder / "report.html", report)
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


# The texts of the table and of the page


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
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    intervals = False
    for row in table:
        cells = []
        for column in columns:
            number, interval = _value_text(row, column)
            intervals |= bool(interval)
            cells.append(f"<td>{number}{f' <small>{interval}</small>' if interval else ''}</td>")
        body.append(f'<tr><th scope="row">{escape(row.metric)}</th>{"".join(cells)}</tr>')
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
        images.append(f'<img alt="Learning curve: {escape(metric)}" src="data:image/png;base64,{source}">')
    return f'<h2>Learning curves</h2><div class="curves">{"".join(images)}</div>'


def _examples_html(examples: Sequence[HeldOutPair | GeneratedAnswer]) -> str:
    texts = [_texts(example) for example in examples]
    scores = [score for of_example in texts for _, text in of_example for score in text.series["score"]]
    limits = {"score": colour_limit(score for score in scores if score is not None)}
    parts = []
    if examples:
        hint = '<span class="hint">Point at a token for its score.</span>'
        scale = f'{legend(limits["score"])} {MARKS} <span class="prompt">prompt</span>'
        parts.append(f'<div class="legend"><b>Token scores</b> {scale} {hint}</div>')
    for kind, title in ((HeldOutPair, "Held-out pairs"), (GeneratedAnswer, "Generated answers")):
        of_kind = [pair for pair in zip(examples, texts, strict=True) if isinstance(pair[0], kind)]
        if of_kind:
            parts.append(f"<h2>{title}</h2>")
        for example, of_example in of_kind:
            sections = (f"<section><h3>{head}</h3>{text_html(text, limits)}</section>" for head, text in of_example)
            parts.append(
                f'<article>{prompt_html(example.prompt)}<div class="texts">{"".join(sections)}</div></article>'
            )
    return "".join(parts)


def _texts(example: HeldOutPair | GeneratedAnswer) -> list[tuple[str, ScoredText]]:
    """The texts of an example, each with its heading."""
    if isinstance(example, HeldOutPair):
        sides = [("rejected", example.rejected, "delete"), ("chosen", example.chosen, "insert")]
    else:
        sides = []
        for arm in example.arms:
            judge = "" if arm.judge_score is None else f' <small class="judge">judge {arm.judge_score:.2f}</small>'
            sides.append((escape(arm.name) + judge, arm.tokens, "insert"))
    texts = []
    for head, tokens, edit in sides:
        words, scores, edited = zip(*(Token(*token) for token in tokens), strict=True) if tokens else ((), (), ())
        try:
            texts.append((head, ScoredText(words, {"score": scores}, edited=edited, edit=edit)))
        except ValueError as error:
            raise ValueError(f"{error} It is in the example with the prompt {example.prompt!r}.") from error
    return texts


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

_BODY = """{notes}
{command}
<h2>Results</h2>
{table}
{curves}
{examples}"""

_STYLE = """
h2 { font-size: 1.25rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .9rem; margin: 0 0 .3rem; }
main > p { margin: .35rem 0; max-width: 60rem; color: var(--muted); overflow-wrap: anywhere; }
code { background: var(--box); border: 1px solid var(--line); border-radius: 4px; padding: .1rem .35rem;
  color: var(--ink); }
.wide { overflow-x: auto; }
caption { caption-side: bottom; padding-top: .4rem; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
tr > :first-child { text-align: left; padding-left: 0; }
thead th { border-bottom-width: 2px; }
tbody th { font-weight: 400; }
small { font-size: .85em; }
@media (max-width: 48rem) {
  th, td { white-space: normal; padding: .4rem .5rem; font-size: .9rem; vertical-align: top; }
  td small { display: block; white-space: nowrap; }
}
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
.curves img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.legend { position: sticky; top: 0; z-index: 1; margin-top: 2.25rem; padding: .5rem 0; background: var(--page);
  border-bottom: 1px solid var(--line); }
.legend + h2 { margin-top: 1.25rem; }
.texts { grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.hint, .judge { color: var(--muted); }
.judge { margin-left: .5rem; }
"""
