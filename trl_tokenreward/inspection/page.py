"""A page to look through edits: it needs nothing but itself, and every text on it is escaped."""

import random
from pathlib import Path

from ..edits.diff import Piece
from ..views.html import escape, page, write
from .report import OUTCOME_NAMES, InspectedRow, Inspection


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
    return write(path, page(title, body, style=_STYLE, script=_SCRIPT))


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


_BODY = """<div class="summary">{summary}</div>
<p>{note} <del>Deleted</del>, <ins>inserted</ins>, <mark>marked as wrong</mark> by the data set.</p>
<form hidden>
<label>Order <select name="order">
<option value="index">as in the data set</option>
<option value="most">highest edit ratio first</option>
<option value="least">lowest edit ratio first</option>
</select></label>
<label>Edit ratio from <input name="low" type="number" min="0" max="1" step="any" value="0"></label>
<label>to <input name="high" type="number" min="0" max="1" step="any" value="1"></label>
<label>Rows <select name="outcome"><option value="">all</option>{outcomes}</select></label>
<output></output>
</form>
<div id="rows">
{rows}
</div>"""

_SCRIPT = """
"use strict";
const form = document.querySelector("form");
const list = document.getElementById("rows");
const rows = Array.from(list.children);
const orders = {
  index: row => Number(row.dataset.index),
  most: row => -Number(row.dataset.ratio),
  least: row => Number(row.dataset.ratio),
};
function update() {
  const order = orders[form.elements.order.value];
  const low = Number(form.elements.low.value);
  const high = form.elements.high.value === "" ? 1 : Number(form.elements.high.value);
  const outcome = form.elements.outcome.value;
  let shown = 0;
  rows.sort((a, b) => order(a) - order(b) || orders.index(a) - orders.index(b));
  for (const row of rows) {
    const ratio = Number(row.dataset.ratio);
    row.hidden = ratio < low || ratio > high || (outcome !== "" && row.dataset.outcome !== outcome);
    shown += row.hidden ? 0 : 1;
    list.append(row);
  }
  form.querySelector("output").textContent = shown + " shown";
}
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
update();
"""

# Blue and orange, as on all pages; the lines say it without colour.
_STYLE = """
:root { --del: #fde0c8; --ins: #d3e5f7; }
@media (prefers-color-scheme: dark) { :root { --del: #5c3209; --ins: #17406b; } }
main { max-width: 60rem; }
h2 { font-size: 1rem; margin: 0 0 .4rem; }
.summary { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; align-items: start; }
caption { max-width: 18rem; }
th, td { padding: .1rem .8rem .1rem 0; text-align: left; font-weight: 400; white-space: nowrap; }
input { width: 5rem; }
.prompt { max-height: 10rem; overflow-y: auto; }
.diff { margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
del { background: var(--del); }
ins { background: var(--ins); }
mark { background: none; color: inherit; outline: 2px dotted var(--muted); }
"""
