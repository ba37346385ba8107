"""The frame of all HTML pages: a head that lets nothing in, escaped texts, and the legend of the colours."""

import base64
import hashlib
import html
from pathlib import Path

from ..utils.text import visible
from .colours import BAD_RGB, GOOD_RGB, LOW, STRONGEST, number, rgba


def escape(text: str) -> str:
    """A text as HTML's text or attribute value. What no page may hold is shown, see [`~utils.text.visible`]."""
    return html.escape(visible(text), quote=True)


def page(title: str, body: str, *, style: str = "", script: str | None = None, images: bool = False) -> str:
    """A page that needs nothing but itself.

    Args:
        title (`str`):
            Title and first heading.
        body (`str`):
            HTML, its texts escaped.
        style (`str`, *optional*):
            What follows the common style.
        script (`str`, *optional*):
            The page's own script. Only it may run: a text that came through unescaped would still do nothing.
        images (`bool`, *optional*, defaults to `False`):
            Whether it has images, as `data:`.
    """
    policy = ["default-src 'none'", *(["img-src data:"] if images else []), "style-src 'unsafe-inline'"]
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy.append(f"script-src 'sha256-{digest}'")
    return _PAGE.format(
        policy="; ".join(policy),
        title=escape(title),
        style=_STYLE + style,
        body=body,
        script="" if script is None else f"<script>{script}</script>\n",
    )


def check_page(path: str | Path) -> None:
    """Raises a `ValueError` if a page's name does not end as browsers want it."""
    if Path(path).suffix not in (".html", ".htm"):
        raise ValueError(f"{path}: a page's name must end in .html.")


def write(path: str | Path, page: str) -> Path:
    """Writes a page, whose folder is made if it does not exist, and returns its path."""
    check_page(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def legend(limit: float, low: str = "bad", high: str = "good") -> str:
    """The scale of the colours, with its numbers, and what dots mean.

    Args:
        limit (`float`):
            Where the colours are strongest.
        low, high (`str`, *optional*):
            What the ends of the scale are called.
    """
    ends = (
        rgba(BAD_RGB, STRONGEST),
        f"{rgba(BAD_RGB, 0)} 50%",
        f"{rgba(GOOD_RGB, 0)} 50%",
        rgba(GOOD_RGB, STRONGEST),
    )
    return (
        f'<span>&le; <b class="from">&minus;{number(limit)} {escape(low)}</b> '
        f'<i class="scale" style="background:linear-gradient(90deg, {", ".join(ends)})"></i> '
        f'<b class="to">{escape(high)} &ge; +{number(limit)}</b></span> '
        f'<span><span class="low">dotted</span> &le; <b class="dots">&minus;{number(LOW * limit)}</b></span>'
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
{script}</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --muted: #59636e; --line: #d5dae0; --box: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e9ecef; --muted: #a3acb7; --line: #363c44; --box: #1d2126; }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
small, caption { color: var(--muted); font-weight: 400; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .9rem; }
form { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center;
  padding: .6rem 0; background: var(--page); border-bottom: 1px solid var(--line); }
input, select { font: inherit; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; margin: 1rem 0; }
.prompt { color: var(--muted); font-size: .92rem; margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
del { text-decoration: line-through 2px; }
ins { text-decoration: underline 2px; text-underline-offset: .2em; }
@media print { form { display: none; } article { break-inside: avoid; } }
"""
