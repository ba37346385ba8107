"""The frame of all HTML pages: content security policy, escaping, and the legend of the colours."""

import base64
import hashlib
import html
from pathlib import Path

from ..utils.files import check_writable, write_text
from ..utils.text import visible
from .colours import BAD_RGB, GOOD_RGB, LOW, STRONGEST, number, rgba


def read_asset(module: str, name: str) -> str:
    """The text of a file that lies beside a module.

    Args:
        module (`str`):
            The module's `__file__`.
        name (`str`):
            The file.
    """
    return Path(module).with_name(name).read_text(encoding="utf-8")


# Variables `--del` and `--ins`: the backgrounds of deleted and inserted text, on every page that shows edits.
EDIT_COLOURS = Path(__file__).with_name("edit_colours.css")
_PAGE, _STYLE = read_asset(__file__, "frame.html"), read_asset(__file__, "frame.css")


def escape(text: str) -> str:
    """A text as HTML's text or attribute value. What no page may hold is shown, see [`~utils.text.visible`]."""
    return html.escape(visible(text), quote=True)


def page(title: str, body: str, *, style: str = "", script: str | None = None, images: bool = False) -> str:
    """A self-contained page with a content security policy that loads nothing.

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
            `True` if it has images, as `data:` URLs.
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
    """Raises a `ValueError` if a page's name does not end as browsers want it, or no file can be written there."""
    if Path(path).suffix not in (".html", ".htm"):
        raise ValueError(f"{path}: a page's name must end in .html.")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a file.")
    check_writable(Path(path))


def write(path: str | Path, page: str) -> Path:
    """Writes a page, whose folder is made if it does not exist, and returns its path."""
    check_page(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
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
