"""Scored texts as HTML: on a page of their own, in a notebook, and for whoever puts them into another page."""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.text import visible
from .colours import BAD_RGB, GOOD_RGB, LOW, STRONGEST, score_colour
from .html import escape, legend, page, write
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


def write_page(rows: "ScoredRows", path: str | Path, *, limit: int = 1000, seed: int = 0) -> Path:
    """Writes scored texts as a page that needs nothing but itself.

    A token's numbers come up under the pointer, under a finger, and, once its text has the focus, with the arrow keys.

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
        notes="".join(f"<p>{escape(sentence)}</p>" for sentence in [note, *rows.left_out]),
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
    notes = "".join(f"<p>{escape(sentence)}</p>" for sentence in rows.left_out)
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
            Whether the tokens carry all their numbers for a script.
    """
    tokens = "".join(_token(text, piece, limits, with_values) for piece in text.pieces())
    return f'<p class="text" dir="auto">{tokens}</p>'


def _token(text: ScoredText, piece: Shown, limits: Mapping[str, float], with_values: bool) -> str:
    blank, word = split_blank(shown_blanks(visible(piece.text)))
    shown = escape(word)
    if text.is_edited(piece):
        tag = {"delete": "del", "insert": "ins"}[text.edit]
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
    tokens = [v for text in row.texts for values in [*text.series.values()][:1] for v in values if v is not None]
    numbers = [number for text in row.texts for number in [*text.numbers.values()][:1]]
    return {
        "lowest": min(tokens, default=0.0),
        "score": min(numbers, default=0.0),
        "spread": min(numbers, default=0.0) - max(numbers, default=0.0),
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


# --- style and script ----------------------------------------------------------------------------------------------

# For a page with the common style, and for a notebook's cell.
TEXT_STYLE = """
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; align-items: center; font-size: .9rem; }
.legend b { font-weight: 600; font-variant-numeric: tabular-nums; }
.scale { display: inline-block; width: 8rem; max-width: 30vw; height: .9rem; vertical-align: -.12rem; border: 1px solid var(--line); }
.texts { display: grid; grid-template-columns: repeat(var(--columns, 2), minmax(0, 1fr)); gap: .6rem 1.6rem; }
@media (max-width: 48rem) {
.texts { grid-template-columns: minmax(0, 1fr); }
}
.head { font-size: .9rem; }
.text { margin: .1rem 0 .3rem; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; tab-size: 4; }
.text span { padding: .12em 0; border-radius: 2px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.low { border-bottom: 2px dotted currentColor; }
"""

_STYLE = """
h2 { font-size: 1rem; margin: 0 0 .3rem; }
main > p { color: var(--muted); margin: .3rem 0; }
article { content-visibility: auto; contain-intrinsic-size: auto 9rem; }
.prompt { max-height: 10rem; overflow-y: auto; }
form .legend { flex-basis: 100%; }
@media (max-width: 48rem), (max-height: 30rem) { form { position: static; } }
input[type=range] { width: 14rem; max-width: 50vw; }
select { max-width: 22rem; }
.text:focus { outline: 2px solid var(--muted); outline-offset: 3px; }
.text .at { outline: 2px solid var(--ink); }
.tip { position: absolute; z-index: 2; max-width: 20rem; padding: .25rem .5rem; background: var(--ink); color: var(--page);
  border-radius: 4px; font-size: .85rem; white-space: pre-wrap; font-variant-numeric: tabular-nums; pointer-events: none; }
@media print { .prompt { max-height: none; } article { content-visibility: visible; } .tip { display: none; } }
"""

# Everything below one class: nothing else in the notebook changes.
_NOTEBOOK_STYLE = ".scored { --line: rgba(128, 128, 128, .5); }" + re.sub(
    r"(?m)^(?=[.a-z])",
    ".scored ",
    TEXT_STYLE
    + """
.legend { margin: .3rem 0 .6rem; }
.row { padding: .5rem 0; border-top: 1px solid var(--line); }
.prompt { opacity: .65; margin: .2rem 0; white-space: pre-wrap; unicode-bidi: isolate; }
ins { background: none; color: inherit; text-decoration: underline 2px; text-underline-offset: .2em; }
del { background: none; color: inherit; text-decoration: line-through 2px; }
""",
)

_BODY = """{notes}
<form hidden data-series="{series}" data-steps="{steps}" data-colours="{colours}">
<label data-if="series">Colour by <select name="series">{series_options}</select></label>
<label>Scale <select name="scale">
<option value="same">the same for all</option>
<option value="own">each text's own, about its mean</option>
</select></label>
<label>Order <select name="order">{orders}</select></label>
<label data-if="prompts">Prompt <select name="prompt"><option value="">all</option>{prompts}</select></label>
<label data-if="steps">Step <input name="step" type="range" min="0" value="0"> <output name="at"></output></label>
<output name="shown"></output>
<div class="legend">{legend}</div>
</form>
<div id="rows">
{rows}
</div>"""

_SCRIPT = """
"use strict";
const form = document.querySelector("form");
const colours = JSON.parse(form.dataset.colours);
const list = document.getElementById("rows");
const rows = Array.from(list.children);
const series = JSON.parse(form.dataset.series);
const steps = JSON.parse(form.dataset.steps);
const fields = form.elements;
const painted = new WeakMap();
let ordered = "index";

// Colours

function paint(text, chosen, own) {
  const tokens = Array.from(text.querySelectorAll("[data-v]"));
  const values = tokens.map(token => token.dataset.v.split(" ")[chosen]).map(v => v === "" ? null : Number(v));
  let limit = series[chosen].limit, middle = 0;
  if (own) {
    const known = values.filter(v => v !== null);
    middle = known.reduce((sum, v) => sum + v, 0) / (known.length || 1);
    limit = Math.max(...known.map(v => Math.abs(v - middle))) || 1;
  }
  tokens.forEach((token, i) => {
    const share = values[i] === null ? 0 : (values[i] - middle) / limit;
    const rgb = share > 0 ? colours.good : colours.bad;
    token.style.background = `rgba(${rgb}, ${colours.strongest * Math.min(Math.abs(share), 1)})`;
    token.classList.toggle("low", share <= -colours.low);
  });
}

function number(magnitude) {
  return magnitude >= 0.1 ? magnitude.toFixed(2) : magnitude.toPrecision(2);
}

function describe(chosen, own) {
  const {limit, ends} = series[chosen];
  const legend = form.querySelector(".legend");
  legend.querySelector(".from").textContent = own ? "below its mean" : `\\u2212${number(limit)} ${ends[0]}`;
  legend.querySelector(".to").textContent = own ? "above its mean" : `${ends[1]} \\u2265 +${number(limit)}`;
  legend.querySelector(".dots").textContent = own ? "half of the way down" : `\\u2212${number(colours.low * limit)}`;
}

// Which rows, in which order

function update() {
  const order = fields.order.value, chosen = Number(fields.series.value || 0), own = fields.scale.value === "own";
  const prompt = fields.prompt.value, step = steps[Number(fields.step.value)];
  // All completions of one prompt stand below each other; of all prompts, those of one step.
  const every = steps.length < 2 || prompt !== "";
  fields.step.disabled = every;
  fields.at.textContent = every ? "all" : `${step} of ${steps[steps.length - 1]}`;
  let shown = 0;
  if (order !== ordered) {
    rows.sort((a, b) => a.dataset[order] - b.dataset[order] || a.dataset.index - b.dataset.index);
    list.append(...rows);
    ordered = order;
  }
  for (const row of rows) {
    row.hidden = prompt !== "" && row.dataset.prompt !== prompt || !every && Number(row.dataset.step) !== step;
    shown += row.hidden ? 0 : 1;
    const wanted = `${chosen} ${own}`;
    if (!row.hidden && painted.get(row) !== wanted) {
      row.querySelectorAll(".text").forEach(text => paint(text, chosen, own));
      painted.set(row, wanted);
    }
  }
  if (series.length) describe(chosen, own);
  fields.shown.textContent = shown + " shown";
  hide();
}

// The numbers of a token

const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
let current = null;

function hide() {
  if (current) current.classList.remove("at");
  current = null;
  tip.hidden = true;
}

function show(token) {
  hide();
  if (token.title) {  // or the browser would show it too
    token.dataset.numbers = token.title;
    token.removeAttribute("title");
  }
  current = token;
  token.classList.add("at");
  tip.textContent = token.textContent.trim() + "\\n" + token.dataset.numbers;
  tip.hidden = false;
  tip.style.left = 0;  // its width is not to be that of the room at its last place
  const at = token.getClientRects()[0];
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = at.bottom + tip.offsetHeight + 8 < window.innerHeight;
  tip.style.left = Math.max(8, left) + window.scrollX + "px";
  tip.style.top = (below ? at.bottom + 6 : at.top - tip.offsetHeight - 6) + window.scrollY + "px";
}

for (const type of ["pointerover", "click"]) {
  document.addEventListener(type, event => {
    const token = event.target.closest ? event.target.closest("[data-v]") : null;
    if (token) show(token);
    else if (current && current.parentElement !== document.activeElement) hide();
  });
}
list.addEventListener("focusin", event => {
  const text = event.target.closest(".text");
  if (text && !(current && text.contains(current))) {
    const token = text.querySelector("[data-v]");
    if (token && text.matches(":focus-visible")) show(token);
  }
});
list.addEventListener("focusout", hide);
list.addEventListener("keydown", event => {
  const text = event.target.closest(".text");
  if (!text) return;
  const tokens = Array.from(text.querySelectorAll("[data-v]"));
  const place = tokens.indexOf(current);
  const forward = getComputedStyle(text).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  const targets = {Home: 0, End: tokens.length - 1, ArrowRight: place - 1, ArrowLeft: place - 1};
  targets[forward] = place + 1;
  if (event.key === "Escape") hide();
  else if (event.key in targets && tokens.length) {
    event.preventDefault();
    const token = tokens[Math.max(0, Math.min(targets[event.key], tokens.length - 1))];
    token.scrollIntoView({block: "nearest"});
    show(token);
  }
});

list.querySelectorAll(".text").forEach(text => { text.tabIndex = 0; });
const wanted = {series: series.length > 1, prompts: fields.prompt.length > 1, steps: steps.length > 1};
form.querySelectorAll("[data-if]").forEach(label => { label.hidden = !wanted[label.dataset.if]; });
fields.step.max = Math.max(0, steps.length - 1);
fields.step.value = fields.step.max;
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
update();
"""
