"""Scored texts as a sequence that shows itself on a terminal, in a notebook and on a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..utils.text import visible
from .colours import colour_limit
from .page import notebook_html, write_page
from .scored_text import ScoredRow
from .terminal import legend_line, row_lines


@dataclass(frozen=True)
class ScoredRows(Sequence):
    """Scored texts, a sequence of [`ScoredRow`].

    On a terminal, `rich.print` prints them; at the end of a notebook's cell they show themselves.

    Args:
        title (`str`):
            What they are, such as the name of the model.
        rows (`Sequence[ScoredRow]`):
            The rows. All their texts have the same series.
        dropped (`Sequence[str]`, *optional*):
            What was dropped and why, one sentence each.
    """

    title: str
    rows: Sequence[ScoredRow]
    dropped: Sequence[str] = ()

    def __getitem__(self, index):
        return self.rows[index] if isinstance(index, int) else ScoredRows(self.title, self.rows[index], self.dropped)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def limits(self) -> dict[str, float]:
        """Series to the magnitude that gets the strongest colour, see [`~views.colours.colour_limit`]."""
        texts = [text for row in self.rows for text in row.texts]
        names = dict.fromkeys(name for text in texts for name in text.series)
        return {
            name: colour_limit(v for text in texts for v in text.series.get(name, ()) if v is not None)
            for name in names
        }

    def write_page(self, path: str | Path, *, limit: int = 1000, seed: int = 0) -> Path:
        """Writes them as a page, see [`~views.page.write_page`]."""
        return write_page(self, path, limit=limit, seed=seed)

    def _repr_html_(self) -> str:
        return notebook_html(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(visible(self.title), style="bold")
        for sentence in self.dropped:
            yield Text(visible(sentence))
        for series, limit in islice(self.limits.items(), 1):
            yield legend_line(series, limit)
            for row in self.rows:
                yield Text("")
                yield from row_lines(row, series, limit, console, options.max_width)
