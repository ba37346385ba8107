"""The report on edits as a self-contained HTML page. Every text on it is escaped."""

import random
from pathlib import Path

from ..edits.diff import Piece
from ..views.html import EDIT_COLOURS, escape, page, read_asset, write
from .report import OUTCOME_NAMES, InspectedRow, Inspection


_BODY, _STYLE, _SCRIPT = (read_asset(__file__, f"edits.{kind}") for kind in ("html", "css", "js"))


def write_page(inspection: Inspection, path: str | Path, *, title: str, limit: int = 1000, seed: int = 0) -> Path:
    """Writes the figures and the rows, which the page can sort and filter by edit ratio, as HTML.

    Args:
        inspection ([`Inspection`]):
            What to show.
        path (`str` or `Path`):
            The file, which is overwritten; its folder is made if it does not exist.
        title (`str`):
            What was inspected.
        limit (`int`, *optional*, defaults to `1000`):
            Of more rows than that, the page has a sample.
        seed (`int`, *optional*, defaults to `0`):
            The same seed draws the same sample.

    Returns:
        `Path`: the file.
    """
    rows = inspection.rows
    note = f"All {len(rows)} rows."
    if limit < len(rows):
        note = f"{limit} of {len(rows)} rows, drawn at random with the seed {seed}."
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]
    outcomes = dict.fromkeys(row.outcome for row in rows)
    body = _BODY.format(
        summary="".join(_table(name, table) for name, table in inspection.summary().items()),
        note=note,
        outcomes="".join(f'<option value="{outcome}">{OUTCOME_NAMES[outcome]}</option>' for outcome in outcomes),
        rows="\n".join(_article(row, *inspection.diff(row.index)) for row in rows),
    )
    return write(path, page(title, body, style=EDIT_COLOURS.read_text(encoding="utf-8") + _STYLE, script=_SCRIPT))


def _table(name: str, rows: list[tuple[str, ...]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table><caption>{escape(name)}</caption><tbody>{body}</tbody></table>"


def _article(row: InspectedRow, prompt: str, pieces: list[Piece]) -> str:
    shown = f'<p class="prompt" dir="auto">{escape(prompt.strip())}</p>' if prompt.strip() else ""
    return (
        f'<article data-index="{row.index}" data-ratio="{row.ratio!r}" data-outcome="{row.outcome}">'
        f"<h2>Row {row.index} <small>edit ratio {row.ratio:.3f}, {OUTCOME_NAMES[row.outcome]}</small></h2>"
        f'{shown}<p class="diff" dir="auto">{"".join(map(_piece, pieces))}</p></article>'
    )


def _piece(piece: Piece) -> str:
    text = escape(piece.text)
    if piece.marked:
        text = f"<mark>{text}</mark>"
    tags = {"delete": "del", "insert": "ins"}
    return f"<{tags[piece.kind]}>{text}</{tags[piece.kind]}>" if piece.kind in tags else text
