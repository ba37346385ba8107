"""Scores as pre-annotations, and what comes back when annotators accept them."""

import json
import math
import sys
from xml.etree import ElementTree

import pytest
import torch
from datasets import Dataset

import tiny
from trl_tokenreward import ImplicitReward, TokenRewardModel, TokenScorer, export_scores
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.annotation_tools.predictions import Predicted, low_spans
from trl_tokenreward.data.importers import import_dataset


pytestmark = pytest.mark.any_trl

ROWS = [
    {"prompt": "Human: how?", "completion": " mix the flour, the water & the <b>salt</b>\nthen wait"},
    {"prompt": "a", "completion": "the quick 🦊 brown fox jumps over the 🦊"},
    {"prompt": "", "completion": "This movie was lousy."},
    {"prompt": "x", "completion": "  "},
]
LABEL = 'wrong "&<'


@pytest.fixture(scope="module")
def scorer():
    torch.manual_seed(0)
    model = TokenRewardModel.from_backbone(tiny.causal_lm())
    torch.nn.init.normal_(model.token_score.weight)
    return TokenScorer(model, tiny.tokenizer(), name="a <model>")


def test_implicit_rewards_are_refused(tmp_path):
    implicit = ImplicitReward(tiny.causal_lm(seed=1), tiny.causal_lm(seed=2))
    with pytest.raises(TypeError, match="of a TokenRewardModel, but x has implicit rewards"):
        export_scores("argilla", [{"text": "a"}], TokenScorer(implicit, tiny.tokenizer(), "x"), tmp_path / "new")


@pytest.mark.parametrize(
    ("text", "places", "scores", "expected"),
    [
        ("ab cd", [(0, 2), (2, 5)], [1, 1], []),
        ("ab cd", [(0, 2), (2, 5)], [-1, 1], [(0, 2, -1)]),
        ("ab cd", [(0, 2), (2, 5)], [1, -1], [(3, 5, -1)]),
        ("ab cd", [(0, 2), (2, 5)], [-1, -2], [(0, 5, -2)]),
        ("ab cd ef", [(0, 2), (3, 5), (6, 8)], [-1, -2, 1], [(0, 5, -2)]),
        ("ab cd ef", [(0, 2), (2, 5), (5, 8)], [-1, 1, -3], [(0, 2, -1), (6, 8, -3)]),
        ("a \n b", [(0, 1), (1, 4), (4, 5)], [1, -1, 1], []),
        ("é!", [(0, 1), (0, 1), (1, 2)], [-1, 2, 2], [(0, 1, -1)]),
        ("é!", [(0, 1), (0, 1), (0, 1), (1, 2)], [-1, 2, -2, 2], [(0, 1, -2)]),
        ("ab", [(0, 1), (1, 2)], [0, 0], []),
        ("", [], [], []),
    ],
)
def test_low_spans(text, places, scores, expected):
    assert low_spans(text, places, scores, 0.0) == [Predicted(*span) for span in expected]


def accepted(tasks):
    """The tasks as Label Studio exports them, once annotators have accepted each prediction."""
    for number, task in enumerate(tasks):
        [prediction] = task["predictions"]
        results = [{**result, "origin": "prediction"} for result in prediction["result"]]
        task |= {"id": number, "annotations": [{"id": number, "was_cancelled": False, "result": results}]}
    return tasks


def test_label_studio_and_back(scorer, tmp_path):
    exported = export_scores("label-studio", ROWS, scorer, tmp_path / "out", label=LABEL)
    assert exported.counts == {"rows": 4, "kept": 3, "the text is empty": 1}
    tasks = json.loads((tmp_path / "out/tasks.json").read_text(encoding="utf-8"))
    assert [task["data"] for task in tasks] == [{"row": i, **ROWS[i]} for i in range(3)]
    [prediction] = tasks[0]["predictions"]
    [first, *_], [span, *_] = prediction["result"], exported.texts[0].spans
    assert prediction["model_version"] == "a <model>"
    assert prediction["score"] == pytest.approx(1 / (1 + math.exp(exported.texts[0].score)))
    assert first["score"] == pytest.approx(1 / (1 + math.exp(span.score)))
    assert (first["from_name"], first["to_name"], first["type"]) == ("spans", "completion", "labels")
    text = ROWS[0]["completion"][span.start : span.end]
    assert first["value"] == {"start": span.start, "end": span.end, "text": text, "labels": [LABEL]}

    config = ElementTree.parse(tmp_path / "out/labeling.xml").getroot()
    tags = {tag.get("name"): tag for tag in config.iter() if tag.get("name")}
    assert {name: tags[name].get("value") for name in ("prompt", "completion")} == {
        "prompt": "$prompt",
        "completion": "$completion",
    }
    assert tags["spans"].get("toName") == "completion" and tags["spans"].find("Label").get("value") == LABEL

    path = tmp_path / "export.json"
    path.write_text(json.dumps(accepted(tasks)), encoding="utf-8")
    imported = import_dataset("label-studio", path)
    assert imported.dataset.to_list() == [
        {
            **ROWS[text.row],
            "completion_spans": [{"start": start, "end": end} for start, end, _ in text.spans],
        }
        for text in exported.texts
    ]
    assert sum(len(text.spans) for text in exported.texts) > 5


def test_argilla_and_back(scorer, tmp_path):
    exported = export_scores("argilla", ROWS, scorer, tmp_path / "out", label=LABEL)
    reason = "a text with characters beyond U+FFFF, which Argilla counts in two ways"
    assert exported.counts == {"rows": 4, "kept": 2, reason: 1, "the text is empty": 1}
    records = json.loads((tmp_path / "out/records.json").read_text(encoding="utf-8"))
    assert [(record["id"], record["fields"]) for record in records] == [("0", ROWS[0]), ("2", ROWS[2])]
    suggestion = records[0]["suggestions"]["spans"]
    assert suggestion["agent"] == "a <model>" and 0.5 < suggestion["score"] < 1
    settings = json.loads((tmp_path / "out/settings.json").read_text(encoding="utf-8"))
    [spans, verdict] = settings["questions"]
    assert spans["settings"]["field"] == "completion" and spans["settings"]["options"][0]["value"] == LABEL
    assert [field["name"] for field in settings["fields"]] == ["prompt", "completion"] and verdict["required"]

    responses = [[record["suggestions"]["spans"]["value"]] for record in records]
    answers = {"": responses, ".users": [["ada"]] * 2, ".status": [["submitted"]] * 2}
    columns = {name: [record["fields"][name] for record in records] for name in ("prompt", "completion")}
    data = Dataset.from_dict({**columns, **{f"spans.responses{end}": values for end, values in answers.items()}})
    imported = import_dataset("argilla", data)
    assert imported.dataset["completion_spans"][:] == [
        [{"start": start, "end": end} for start, end, _ in text.spans] for text in exported.texts
    ]


def test_without_prompts_there_is_none_to_show(scorer, tmp_path):
    rows = Dataset.from_dict({"text": ["This movie was lousy.", "the quick brown fox"]})
    export_scores("label-studio", rows, scorer, tmp_path / "studio", limit=1, threshold=1000)
    export_scores("argilla", rows, scorer, tmp_path / "argilla", threshold=-1000)
    [task] = json.loads((tmp_path / "studio/tasks.json").read_text(encoding="utf-8"))
    [result] = task["predictions"][0]["result"]  # all of it
    assert task["data"] == {"row": 0, "completion": "This movie was lousy."} and result["value"]["end"] == 21
    assert "prompt" not in (tmp_path / "studio/labeling.xml").read_text(encoding="utf-8")
    records = json.loads((tmp_path / "argilla/records.json").read_text(encoding="utf-8"))
    assert [record["suggestions"] for record in records] == [{}, {}]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"chosen": "a", "rejected": "b"}], {}, "Row 0 is a pair"),
        ([ROWS[0], {"completion": [{"role": "user", "content": "a"}]}], {}, "Row 1 has messages"),
        ([{"answer": "a"}], {}, r"Row 0 has the columns \['answer'\]"),
        ([{"text": "half \ud83d"}], {}, "Row 0: `text` has half of a character"),
        ([{"text": "fox " * 200}], {}, "Text 0 has .* tokens, more than 128"),
        ([{"text": " "}], {}, r"No text is left to export \(rows: 1, kept: 0, the text is empty: 1\)"),
        ([], {}, "No text is left to export"),
        (ROWS, {"threshold": math.nan}, "`threshold` must be a number"),
        (ROWS, {"label": " "}, "`label` must have a name"),
        (ROWS, {"limit": 0}, "`limit` must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(rows, arguments, message, scorer, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_scores("label-studio", rows, scorer, tmp_path / "out", **arguments)
    assert [*tmp_path.iterdir()] == []


def test_other_arguments_are_checked(scorer, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        export_scores("argilla", ROWS, scorer, tmp_path)
    with pytest.raises(ValueError, match="`tool` must be"):
        export_scores("doccano", ROWS, scorer, tmp_path / "out")
    of_sequences = TokenScorer(scorer.model, scorer.tokenizer, signal="sequence_score")
    with pytest.raises(ValueError, match="Spans are made of token scores"):
        export_scores("argilla", ROWS, of_sequences, tmp_path / "out")


def test_the_command(scorer, tmp_path, capsys):
    scorer.model.save_pretrained(tmp_path / "model")
    scorer.tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    model, rows, output = (str(tmp_path / name) for name in ("model", "rows.jsonl", "out"))
    assert cli.main(["export", "argilla", model, rows, output, "--threshold", "-.5", "--label", "bad"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 texts with" in printed and "dropped: the text is empty: 1" in printed and output in printed
    direct = export_scores("argilla", ROWS, scorer, tmp_path / "direct", threshold=-0.5, label="bad")
    records = json.loads((tmp_path / "out/records.json").read_text(encoding="utf-8"))
    spans = [record["suggestions"].get("spans", {"value": []})["value"] for record in records]
    assert [len(of_text) for of_text in spans] == [len(text.spans) for text in direct.texts]
    assert cli.main(["export", "argilla", model, rows, output]) == 2
    assert "exists already" in capsys.readouterr().err


def test_argilla_and_label_studio_are_no_dependencies():
    assert not {"argilla", "label_studio_sdk"} & sys.modules.keys()
