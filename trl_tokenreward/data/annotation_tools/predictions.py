"""Spans of low scores as pre-annotations, which annotators accept or correct: for Label Studio and for Argilla.

The names in them are those that [`~data.importers.import_dataset`] finds by itself.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ..spans import without_white_space


class Predicted(NamedTuple):
    """A span `text[start:end]` that may be wrong, and the lowest score of its tokens."""

    start: int
    end: int
    score: float


class PreAnnotated(NamedTuple):
    """A text with its spans.

    Args:
        row (`int`):
            The number of its row.
        prompt, text (`str`):
            The prompt, which is shown, and the text, which is annotated.
        score (`float`):
            The lowest score of a token, by which texts can be put in order.
        spans (`list[Predicted]`):
            What may be wrong.
    """

    row: int
    prompt: str
    text: str
    score: float
    spans: list[Predicted]


def low_spans(
    text: str, places: Sequence[tuple[int, int]], scores: Sequence[float], threshold: float
) -> list[Predicted]:
    """Runs of tokens that score below a threshold, as spans without white space at their ends.

    Args:
        text (`str`):
            The text.
        places (`Sequence[tuple[int, int]]`):
            L: the characters of each token, as in [`TextScores`].
        scores (`Sequence[float]`):
            L: the score of each token.
        threshold (`float`):
            Tokens with a lower score count.
    """
    runs: list[Predicted] = []
    last = None
    for token, ((start, end), score) in enumerate(zip(places, scores, strict=True)):
        if score >= threshold:
            continue
        # Tokens of one character have the same place, and one low score among them is enough.
        if runs and (last == token - 1 or start < runs[-1].end):
            before = runs.pop()
            start, end, score = before.start, max(end, before.end), min(score, before.score)
        runs.append(Predicted(start, end, score))
        last = token
    return [
        Predicted(*without_white_space(text, start, end), score)
        for start, end, score in runs
        if text[start:end].strip()
    ]


def _confidence(score: float) -> float:
    """That something is wrong, 1 - sigma(score): with `token_loss="classification"` a probability. Both tools want a
    number between 0 and 1."""
    return 0.5 * (1 - math.tanh(0.5 * score))


def _have_prompts(texts: Sequence[PreAnnotated]) -> bool:
    return any(text.prompt for text in texts)


def _fields(texts: Sequence[PreAnnotated], text: PreAnnotated) -> dict[str, str]:
    prompt = {"prompt": text.prompt} if _have_prompts(texts) else {}
    return {**prompt, "completion": text.text}


def label_studio_tasks(texts: Sequence[PreAnnotated], label: str, model: str) -> list[dict[str, Any]]:
    """Tasks with predictions, to import into a project with the labeling interface of [`label_studio_config`]."""
    return [
        {
            "data": {"row": text.row, **_fields(texts, text)},
            "predictions": [
                {
                    "model_version": model,
                    "score": _confidence(text.score),
                    "result": [
                        {
                            "id": f"{text.row}-{number}",
                            "from_name": "spans",
                            "to_name": "completion",
                            "type": "labels",
                            "score": _confidence(span.score),
                            "value": {
                                "start": span.start,
                                "end": span.end,
                                "text": text.text[span.start : span.end],
                                "labels": [label],
                            },
                        }
                        for number, span in enumerate(text.spans)
                    ],
                }
            ],
        }
        for text in texts
    ]


def label_studio_config(texts: Sequence[PreAnnotated], label: str) -> str:
    """The labeling interface, in XML. White space is shown as it is, and results have the text that they mark, with
    which offsets are checked."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Style").text = ".htx-text { white-space: pre-wrap; }"
    if _have_prompts(texts):
        ElementTree.SubElement(view, "Text", name="prompt", value="$prompt", selectionEnabled="false")
    labels = ElementTree.SubElement(view, "Labels", name="spans", toName="completion")
    ElementTree.SubElement(labels, "Label", value=label, background="#d55e00")
    ElementTree.SubElement(view, "Text", name="completion", value="$completion", saveTextResult="yes")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def argilla_records(texts: Sequence[PreAnnotated], label: str, model: str) -> list[dict[str, Any]]:
    """Records with suggestions, as `dataset.records.from_json` reads them, for a data set with the settings of
    [`argilla_settings`]."""
    records = []
    for text in texts:
        spans = [{"start": span.start, "end": span.end, "label": label} for span in text.spans]
        suggestion = {"value": spans, "score": _confidence(text.score), "agent": model}
        records.append(
            {
                "id": str(text.row),
                "fields": _fields(texts, text),
                "suggestions": {"spans": suggestion} if spans else {},
                "responses": {},
            }
        )
    return records


def argilla_settings(texts: Sequence[PreAnnotated], label: str) -> dict[str, Any]:
    """The settings of the data set, as `rg.Settings.from_json` reads them. A data set of Argilla needs a required
    question, and a `SpanQuestion` has no answer where nothing is wrong, so there is a second one, `verdict`."""
    names = [*(["prompt"] if _have_prompts(texts) else []), "completion"]
    text = {"type": "text", "use_markdown": False}
    span = {"type": "span", "field": "completion", "allow_overlapping": False, "options": _options([label])}
    verdict = {"type": "label_selection", "options": _options(["some is wrong", "all is right"])}
    return {
        "guidelines": "Mark what is wrong, and remove the marks of what is right.",
        "fields": [{"name": name, "title": name, "required": name == "completion", "settings": text} for name in names],
        "questions": [
            {"name": "spans", "title": "What is wrong?", "required": False, "settings": span},
            {"name": "verdict", "title": "Verdict", "required": True, "settings": verdict},
        ],
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": False,
    }


def _options(labels: Sequence[str]) -> list[dict[str, str | None]]:
    return [{"value": label, "text": label, "description": None} for label in labels]
