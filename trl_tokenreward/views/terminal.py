"""Scored texts on a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..utils.text import visible
from .colours import (
    BAD_LIGHT_RGB,
    BAD_RGB,
    BAD_TEXT_RGB,
    GOOD_LIGHT_RGB,
    GOOD_RGB,
    GOOD_TEXT_RGB,
    LOW,
    hex_colour,
    number,
)
from .scored_text import ScoredRow, ScoredText, compact, numbers_text, shown_blanks, split_blank


# Share of the scale, either way, from where on a style is used. On a light and on a dark terminal each can be read.
_GOOD_STYLES = (
    (0.75, Style(color="#ffffff", bgcolor=hex_colour(GOOD_RGB))),
    (0.4, Style(color="#000000", bgcolor=hex_colour(GOOD_LIGHT_RGB))),
    (0.1, Style(color=hex_colour(GOOD_TEXT_RGB))),
)
_BAD_STYLES = (
    (0.75, Style(color="#000000", bgcolor=hex_colour(BAD_RGB))),
    (0.4, Style(color="#000000", bgcolor=hex_colour(BAD_LIGHT_RGB))),
    (0.1, Style(color=hex_colour(BAD_TEXT_RGB))),
)
_SIDE_BY_SIDE = 100  # columns of a terminal from where on texts stand side by side


def _style(value: float, limit: float) -> Style:
    share = value / limit
    styles = _GOOD_STYLES if share > 0 else _BAD_STYLES
    style = next((style for least, style in styles if abs(share) >= least), Style())
    return style + Style(bold=True) if share <= -LOW else style


def legend_line(series: str, limit: float) -> Text:
    text = Text(f"{visible(series)}: ")
    for share in (-1, -0.5, -0.25, 0, 0.25, 0.5, 1):
        sign = "-" if share < 0 else "+" if share else ""
        text.append(f" {sign}{number(abs(share) * limit)} ", style=_style(share * limit, limit))
    return text.append(f"  bold: -{number(LOW * limit)} or less", style="dim")


def row_lines(row: ScoredRow, series: str, limit: float, console: Console, width: int) -> Iterator[Any]:
    yield Text(visible(row.name), style="bold")
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
    head = visible(", ".join([*filter(None, [text.name]), *numbers_text(text.numbers)]))
    cell = Text(f"{head}\n" if head else "", style="")
    cell.stylize("bold", 0, len(head))
    opening, closing, line = ("[-", "-]", "strike") if text.edit == "delete" else ("{+", "+}", "underline")
    inside = False
    for piece in text.pieces():
        edited = text.is_edited(piece)
        blank, word = split_blank(shown_blanks(visible(piece.text)))
        if inside and not edited:
            cell.append(closing)
        cell.append(blank)
        if edited and not inside:
            cell.append(opening)
        inside = edited
        value = text.mean(series, piece)
        style = Style() if value is None else _style(value, limit)
        cell.append(word, style=style + Style.parse(line) if edited else style)
    if inside:
        cell.append(closing)
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
