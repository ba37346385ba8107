"""A page to look through edits: it needs nothing but itself, and every text on it is escaped."""

import base64
import hashlib
import html
import random
from pathlib import Path

from .inspection import OUTCOME_NAMES, InspectedRow, Inspection, Piece, visible


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
    page = _PAGE.format(
        # Only the page's own script runs: a text that came through unescaped would still do nothing.
        script_hash=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
        title=_escape(title),
        style=_STYLE,
        summary="".join(_table(name, table) for name, table in inspection.summary().items()),
        note=note,
        outcomes="".join(f'<option value="{outcome}">{OUTCOME_NAMES[outcome]}</option>' for outcome in outcomes),
        rows="\n".join(_article(row, *inspection.diff(row.index)) for row in rows),
        script=_SCRIPT,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _escape(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _table(name: str, rows: list[tuple[str, ...]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{_escape(row[0])}</th>{"".join(f"<td>{_escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<table><caption>{_escape(name)}</caption><tbody>{body}</tbody></table>"


def _article(row: InspectedRow, prompt: str, pieces: list[Piece]) -> str:
    shown = f'<p class="prompt" dir="auto">{_escape(prompt.strip())}</p>' if prompt.strip() else ""
    return (
        f'<article data-index="{row.index}" data-ratio="{row.ratio!r}" data-outcome="{row.outcome}">'
        f"<h2>Row {row.index} <small>edit ratio {row.ratio:.3f}, {OUTCOME_NAMES[row.outcome]}</small></h2>"
        f'{shown}<p class="diff" dir="auto">{"".join(map(_piece, pieces))}</p></article>'
    )


def _piece(piece: Piece) -> str:
    text = _escape(piece.text)
    if piece.marked:
        text = f"<mark>{text}</mark>"
    tags = {"delete": "del", "insert": "ins"}
    return f"<{tags[piece.kind]}>{text}</{tags[piece.kind]}>" if piece.kind in tags else text


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div class="summary">{summary}</div>
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
</div>
</main>
<script>{script}</script>
</body>
</html>
"""

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

# Blue and orange stay apart in all common forms of colour blindness; the lines say it without colour.
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --muted: #59636e; --line: #d5dae0; --del: #fde0c8; --ins: #d3e5f7; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e9ecef; --muted: #a3acb7; --line: #363c44; --del: #5c3209; --ins: #17406b; }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 .4rem; }
small, .prompt, caption { color: var(--muted); font-weight: 400; }
.summary { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; align-items: start; }
caption { text-align: left; font-size: .9rem; max-width: 18rem; }
th, td { padding: .1rem .8rem .1rem 0; text-align: left; font-weight: 400; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
form { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; padding: .6rem 0; background: var(--page); border-bottom: 1px solid var(--line); }
input { width: 5rem; }
input, select { font: inherit; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; margin: 1rem 0; }
.prompt, .diff { margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.prompt { max-height: 10rem; overflow-y: auto; font-size: .92rem; }
del { background: var(--del); text-decoration: line-through 2px; }
ins { background: var(--ins); text-decoration: underline 2px; text-underline-offset: .2em; }
mark { background: none; color: inherit; outline: 2px dotted var(--muted); }
"""
