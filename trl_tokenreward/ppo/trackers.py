"""Sampled completions in TensorBoard, trackio and wandb: as a table, and as a figure of their token scores."""

import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from string import punctuation
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len
from transformers import TrainerCallback, logging
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..utils.text import visible
from ..views.colours import BAD_RGB, GOOD_RGB, LOW, STRONGEST, colour_limit
from ..views.scored_text import ScoredRow, ScoredText, shown_blanks


if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

# Not "completions", under which `generate_completions` logs those of the evaluation prompts.
TABLE, FIGURE = "train/completions", "train/token_scores"

_COLUMNS = 100  # characters in a line of the figure
_LINES = 8  # most lines of one completion
_POINTS = 9  # size of its font
_ADVANCE = 0.602  # width of a character of DejaVu Sans Mono, which matplotlib brings along, by its size
_LEADING = 1.7


def log_to_trackers(callbacks: Iterable[TrainerCallback], rows: Sequence[ScoredRow], step: int) -> None:
    """Logs completions to those of the trainer's trackers that can show them.

    Without matplotlib there is no figure.

    Args:
        callbacks (`Iterable[TrainerCallback]`):
            The trainer's: those of TensorBoard, trackio and wandb say what is on.
        rows (`Sequence[ScoredRow]`):
            One completion each.
        step (`int`):
            The training step.
    """
    image = table = None
    for callback in callbacks:
        log = next((log for kind, log in _LOGS.items() if isinstance(callback, kind)), None)
        if log is None:
            continue
        if table is None:
            table, image = completion_columns(rows), _image(rows)
        log(callback, table, image, step)


def completion_columns(rows: Sequence[ScoredRow]) -> dict[str, list[Any]]:
    """Columns of a table of completions: `prompt`, `completion`, the numbers of the whole, the mean of every series,
    and the tokens with their scores."""
    table: dict[str, list[Any]] = {}
    for row in rows:
        [text] = row.texts
        means = {f"mean {name}": float(np.mean(np.array(values, dtype=float))) for name, values in text.series.items()}
        cells = {
            "step": row.step,
            "prompt": row.prompt,
            "completion": text.text,
            "length": len(text.tokens),
            **text.numbers,
            **means,
            "token scores": _token_scores(text),
        }
        for name, cell in cells.items():
            table.setdefault(name, []).append(cell)
    return table


def _token_scores(text: ScoredText) -> str:
    pieces = ((shown_blanks(piece.text).strip(), text.mean("score", piece)) for piece in text.pieces())
    return " ".join(f"{word} ({score:+.2f})" for word, score in pieces)


def _to_tensorboard(callback: TensorBoardCallback, table: dict[str, list], image: np.ndarray | None, step: int) -> None:
    if callback.tb_writer is None:
        return
    callback.tb_writer.add_text(TABLE, markdown_table(table), step)
    if image is not None:
        callback.tb_writer.add_image(FIGURE, image, step, dataformats="HWC")


def _to_trackio(callback: TrackioCallback, table: dict[str, list], image: np.ndarray | None, step: int) -> None:
    import pandas as pd
    import trackio

    logs: dict[str, Any] = {TABLE: trackio.Table(dataframe=pd.DataFrame(table))}
    if image is not None:
        logs[FIGURE] = trackio.Image(image)
    trackio.log({**logs, "train/global_step": step})


def _to_wandb(callback: WandbCallback, table: dict[str, list], image: np.ndarray | None, step: int) -> None:
    import pandas as pd
    import wandb

    if wandb.run is None:
        return
    logs: dict[str, Any] = {TABLE: wandb.Table(dataframe=pd.DataFrame(table))}
    if image is not None:
        logs[FIGURE] = wandb.Image(image)
    wandb.log({**logs, "train/global_step": step})


_LOGS = {TensorBoardCallback: _to_tensorboard, TrackioCallback: _to_trackio, WandbCallback: _to_wandb}


def markdown_table(table: dict[str, list[Any]]) -> str:
    """A table in Markdown. Markdown and HTML in cells are escaped."""
    rows = [table, *zip(*table.values(), strict=True)]
    lines = [f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(table)}", *lines[1:]])


def _markdown_cell(cell: Any) -> str:
    text = f"{cell:.3f}" if isinstance(cell, float) else visible(str(cell)).replace("\n", "↵")
    return "".join(f"&#{ord(char)};" if char in punctuation and char not in ".,-+:" else char for char in text)


# --- the figure ----------------------------------------------------------------------------------------------------


def _image(rows: Sequence[ScoredRow]) -> np.ndarray | None:
    if find_spec("matplotlib") is None:
        logger.warning_once(
            'The figure of token scores needs matplotlib: pip install "trl-tokenreward[demo]". The completions are '
            "logged without it."
        )
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(score_figure(rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box for what it has no letter for
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def score_figure(rows: Sequence[ScoredRow]) -> "Figure":
    """A figure of texts whose tokens are coloured by their first series, blue above 0 and orange below, and dotted
    where they are low.

    Args:
        rows (`Sequence[ScoredRow]`):
            The texts, under their prompts. Of long ones the beginning is drawn, which the figure says.
    """
    # Not pyplot: it would choose a display and keep every figure.
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    texts = [(row, text) for row in rows for text in row.texts]
    series = [next(iter(text.series.items())) for _, text in texts]
    limit = colour_limit(value for _, values in series for value in values if value is not None)
    name = series[0][0] if series else "score"
    lines: list[list[tuple[str, float | None]]] = [[(f"{name}: colours end at ±{limit:.2f}", None)]]
    for row, text in texts:
        prompt = " ".join(row.prompt.split())
        if len(prompt) > _COLUMNS:  # its end is what is answered
            prompt = f"…{prompt[1 - _COLUMNS :]}"
        lines += [[], [(prompt, None)], *_wrapped(text)]

    width, height = _POINTS * _ADVANCE / 72, _POINTS * _LEADING / 72
    figure = Figure(figsize=((_COLUMNS + 2) * width, (len(lines) + 1) * height), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, _COLUMNS + 1), ylim=(len(lines) + 0.5, -0.5))
    axes.set_axis_off()
    style: dict[str, Any] = {
        "family": "DejaVu Sans Mono",
        "size": _POINTS,
        "va": "center_baseline",
        "parse_math": False,
    }
    for y, line in enumerate(lines):
        x = 0
        for word, value in line:
            length = cell_len(word)
            if value is not None:
                share = max(-1.0, min(value / limit, 1.0))
                rgb = [channel / 255 for channel in (GOOD_RGB if share > 0 else BAD_RGB)]
                box = Rectangle((x, y - 0.42), length, 0.84, facecolor=(*rgb, STRONGEST * abs(share)), linewidth=0)
                axes.add_patch(box)
                if share <= -LOW:
                    axes.plot([x, x + length], [y + 0.4] * 2, color="black", linestyle=":", linewidth=1.2)
            axes.text(x, y, word, color="#59636e" if value is None else "black", **style)
            x += length
    return figure


def _wrapped(text: ScoredText) -> list[list[tuple[str, float | None]]]:
    """A text as lines of pieces with their values."""
    name = next(iter(text.series))
    lines: list[list[tuple[str, float | None]]] = [[]]
    width, pieces = 0, text.pieces()
    for i, piece in enumerate(pieces):
        value = text.mean(name, piece)
        for part in shown_blanks(visible(piece.text)).replace("\t", "").splitlines():
            for start in range(0, len(part), _COLUMNS):
                word = part[start : start + _COLUMNS]
                if width + cell_len(word) > _COLUMNS:
                    lines.append([])
                    width = 0
                lines[-1].append((word, value))
                width += cell_len(word)
        if "\n" in piece.text:
            lines.append([])
            width = 0
        if len(lines) > _LINES:
            return [*lines[:_LINES], [(f"… {len(pieces) - i} more tokens", None)]]
    return lines
