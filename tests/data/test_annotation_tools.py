"""Exports of annotation tools, built by hand as label-studio-sdk 2.1.2's converter, argilla 2.8.0 and doccano 1.8 write
them."""

import copy
import gzip
import json
import random

import pytest
from datasets import Dataset, List, Value

import tiny
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.importers import import_dataset
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.utils.loading import load_split


pytestmark = pytest.mark.any_trl

TEXT = "A bad text, and worse."


def write(path, rows):
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def span(word="bad", labels=("wrong",), text=TEXT, control="label", with_text=True):
    value = {"start": text.index(word), "end": text.index(word) + len(word), "labels": [*labels]}
    if with_text:
        value["text"] = word
    return {"id": word, "from_name": control, "to_name": "text", "type": "labels", "origin": "manual", "value": value}


def area(*texts, control="edit"):
    value = {"text": [*texts]}
    return {"id": "area", "from_name": control, "to_name": "text", "type": "textarea", "value": value}


def annotation(*results, **more):
    return {"id": 1, "completed_by": 1, "was_cancelled": False, "result": [*results], "lead_time": 2.5, **more}


def task(*annotations, data=None, **more):
    return {"id": 1, "data": data or {"text": TEXT}, "annotations": [*annotations], "predictions": [], **more}


def one_sided(*places, text=TEXT, prompt="", severities=None):
    spans = [{"start": start, "end": end} for start, end in places]
    if severities is not None:
        spans = [{**place, "severity": severity} for place, severity in zip(spans, severities, strict=True)]
    return {"prompt": prompt, "completion": text, "completion_spans": spans}


BAD, WORSE = (2, 5), (16, 21)


# --- Label Studio ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_text", [True, False])
def test_label_studio(tmp_path, with_text):
    path = write(
        tmp_path / "export.json",
        [
            task(annotation(span(with_text=with_text), span("worse", with_text=with_text))),
            task(annotation()),  # nothing is wrong
            task(),
            task(annotation(was_cancelled=True), predictions=[{"result": [span("worse")]}], drafts=[{"result": []}]),
            task(annotation(span()), data={"text": TEXT, "prompt": "Say it.", "row": 3}),
        ],
    )
    with pytest.raises(ValueError, match="Row 0 of .*has no `prompt`, only"):
        import_dataset("label-studio", path, columns={"prompt": "prompt"})
    imported = import_dataset("label-studio", path)
    assert imported.dataset.to_list() == [one_sided(BAD, WORSE), one_sided(), one_sided(BAD, prompt="Say it.")]
    assert imported.counts == {"rows": 5, "kept": 3, "not annotated": 1, "skipped": 1}
    assert imported.notes == {
        "predictions, which are no annotations": 1,
        "drafts, which are no annotations": 1,
        "without a prompt, as others have": 2,
    }
    assert imported.dataset.features["completion_spans"] == List({"start": Value("int64"), "end": Value("int64")})


def test_a_row_without_a_prompt_leaves_the_prompts_of_others(tmp_path):
    asked = [task(annotation(span()), data={"text": TEXT, "prompt": f"Say {word}."}) for word in ("it", "this")]
    path = write(tmp_path / "export.json", [*asked, task(annotation(span()), data={"text": TEXT, "prompt": None})])
    imported = import_dataset("label-studio", path)
    assert list(imported.dataset["prompt"]) == ["Say it.", "Say this.", ""]
    messages = [{"role": "user", "content": "Say it."}]
    path = write(tmp_path / "export.json", [*asked, task(annotation(span()), data={"text": TEXT, "prompt": messages})])
    with pytest.raises(ValueError, match="Row 2 of .*`prompt` must be a text, but is"):
        import_dataset("label-studio", path)


def test_the_prompt_and_the_text_are_found_or_must_be_named(tmp_path):
    data = {"text": TEXT, "prompt": "Say it.", "number": 3}
    path = write(tmp_path / "export.json", [task(annotation(span()), data=data)])
    assert import_dataset("label-studio", path).dataset[0] == one_sided(BAD, prompt="Say it.")
    data = {"answer": TEXT, "question": "Say it."}
    path = write(tmp_path / "export.json", [task(annotation(span()), data=data)])
    with pytest.raises(ValueError, match=r"may be any of the fields \['answer', 'question'\]: name it with `text`"):
        import_dataset("label-studio", path)
    named = import_dataset("label-studio", path, columns={"text": "answer", "prompt": "question"})
    assert named.dataset[0] == one_sided(BAD, prompt="Say it.")
    with pytest.raises(ValueError, match="Row 0 of .*should have the text 'bad'"):
        import_dataset("label-studio", path, columns={"text": "question"})
    with pytest.raises(ValueError, match="the same field"):
        import_dataset("label-studio", path, columns={"text": "answer", "prompt": "answer"})


def test_labels_and_severities(tmp_path):
    results = [span("bad", ["minor"]), span("worse", ["minor", "major"]), span("text", ["good"])]
    path = write(tmp_path / "export.json", [task(annotation(*results))])
    everything = import_dataset("label-studio", path)
    assert everything.dataset[0] == one_sided(BAD, (6, 10), WORSE)
    some = import_dataset("label-studio", path, labels=["minor", "major"])
    assert some.dataset[0] == one_sided(BAD, WORSE)
    assert some.notes == {"spans of good, which is not wrong": 1}
    severe = import_dataset("label-studio", path, labels={"minor": 0.5, "major": 1})
    assert severe.dataset[0] == one_sided(BAD, WORSE, severities=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"No span has the label 'huge'. The labels are \['good', 'major', 'minor'\]"):
        import_dataset("label-studio", path, labels=["minor", "huge"])


def test_several_annotators(tmp_path):
    first, second, third = annotation(span()), annotation(span(), span("worse")), annotation(span("bad text"))
    path = write(tmp_path / "export.json", [task(first, second, third)])
    each = import_dataset("label-studio", path)
    assert each.dataset.to_list() == [one_sided(BAD), one_sided(BAD, WORSE), one_sided((2, 10))]
    most = import_dataset("label-studio", path, annotators="majority")
    assert most.dataset.to_list() == [one_sided(BAD)]
    assert most.counts == {"rows": 1, "kept": 1, "joined with another annotation of the same text": 2}
    path = write(tmp_path / "two.json", [task(first, annotation())])
    assert import_dataset("label-studio", path, annotators="majority").dataset.to_list() == [
        one_sided()
    ]  # half is not most


def test_edits_of_a_text_area(tmp_path):
    edits = [
        task(annotation(area("A text."))),
        task(annotation(area(TEXT))),
        task(annotation()),
        task(annotation(area("one", "two"))),
        task(annotation(was_cancelled=True)),
    ]
    imported = import_dataset("label-studio", write(tmp_path / "edits.json", edits))
    assert imported.dataset.to_list() == [{"prompt": "", "chosen": "A text.", "rejected": TEXT}]
    assert imported.counts == {
        "rows": 5,
        "kept": 1,
        "skipped": 1,
        "the edit is the original": 1,
        "without an edit": 1,
        "several texts in the place of an edit": 1,
    }


def test_edits_with_spans_are_named(tmp_path):
    rows = [
        task(annotation(span(), area("A text."))),
        task(annotation(span("worse"))),
        task(annotation(span(), area(TEXT))),
    ]
    path = write(tmp_path / "export.json", rows)
    with pytest.raises(ValueError, match=r"spans of \['label'\] and texts of \['edit'\]: name what to read"):
        import_dataset("label-studio", path)
    both = import_dataset("label-studio", path, columns={"spans": "label", "edit": "edit"})
    pair = {"prompt": "", "chosen": "A text.", "rejected": TEXT}
    assert both.dataset.to_list() == [{**pair, "rejected_spans": [[*BAD]]}]
    severe = import_dataset("label-studio", path, columns={"spans": "label", "edit": "edit"}, labels={"wrong": 2})
    [marked] = severe.dataset
    assert marked == {**pair, "rejected_spans": [{"start": BAD[0], "end": BAD[1], "severity": 2.0}]}
    [prepared] = prepare_dataset(severe.dataset, tiny.word_tokenizer())[0]
    assert {weight for weight in prepared["rejected_token_weights"] if weight != 1} == {2}
    assert both.counts == {
        "rows": 3,
        "kept": 1,
        "marked, but without an edit": 1,
        "marked, but the edit is the original": 1,
    }
    assert import_dataset("label-studio", path, columns={"edit": "edit"}).dataset.to_list() == [pair]
    spans = import_dataset("label-studio", path, columns={"spans": "label"}).dataset.to_list()
    assert spans == [one_sided(BAD), one_sided(WORSE), one_sided(BAD)]


def test_results_that_are_neither_are_counted(tmp_path):
    of_span = area("why")
    of_span["id"], of_span["value"] = "bad", {**of_span["value"], "start": 2, "end": 5}
    choice = {"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["fine"]}}
    path = write(tmp_path / "export.json", [task(annotation(span(), of_span, choice, {"type": "relation"}))])
    imported = import_dataset("label-studio", path)
    assert imported.dataset[0] == one_sided(BAD)
    assert imported.notes == {
        "texts about a single span": 1,
        "results of the type choices": 1,
        "results of the type relation": 1,
    }


def minimal(**more):
    times = {"created_at": "2026-01-01", "updated_at": "2026-01-01", "lead_time": 2.5}
    return {"text": TEXT, "id": 1, "annotator": 1, "annotation_id": 5, **times, **more}


def test_json_min(tmp_path):
    rows = [
        minimal(label=[span()["value"]]),
        minimal(),
        minimal(label=[span("worse", with_text=False)["value"]], annotation_id=6),
        minimal(annotation_id=None),
    ]
    imported = import_dataset("label-studio", write(tmp_path / "min.json", rows))
    assert imported.dataset.to_list() == [one_sided(BAD), one_sided(), one_sided(WORSE)]
    assert imported.counts == {"rows": 4, "kept": 3, "not annotated": 1}


def test_an_edit_of_json_min_is_named(tmp_path):
    rows = [minimal(label=[span()["value"]], edit="A text."), minimal(edit=["one", "two"]), minimal()]
    path = write(tmp_path / "min.json", rows)
    imported = import_dataset("label-studio", path, columns={"edit": "edit", "spans": "label"})
    assert imported.dataset.to_list() == [
        {"prompt": "", "chosen": "A text.", "rejected": TEXT, "rejected_spans": [[*BAD]]}
    ]
    assert imported.counts["several texts in the place of an edit"] == imported.counts["without an edit"] == 1


def with_emoji(place, end, with_text):
    text = "😀 " + TEXT
    result = span(text=text)
    result["value"] = {"start": place, "end": end, "labels": ["wrong"], **({"text": "bad"} if with_text else {})}
    return task(annotation(result), data={"text": text})


def test_offsets_of_label_studio(tmp_path):
    path = write(tmp_path / "export.json", [with_emoji(4, 7, True), with_emoji(5, 8, True)])
    imported = import_dataset("label-studio", path)
    assert imported.dataset.to_list() == [one_sided((4, 7), text="😀 " + TEXT)] * 2
    assert imported.notes == {"spans converted from offsets in utf-16": 1}
    path = write(tmp_path / "without.json", [with_emoji(4, 7, True), with_emoji(5, 8, False)])
    with pytest.raises(
        ValueError, match="Row 1 of .*without.json: the offsets of its spans may count code-points or utf-16"
    ):
        import_dataset("label-studio", path)
    path = write(tmp_path / "old.json", [with_emoji(5, 8, False)])
    assert import_dataset("label-studio", path, offsets="utf-16").dataset[0] == one_sided((4, 7), text="😀 " + TEXT)
    assert import_dataset("label-studio", path, offsets="code-points").dataset[0]["completion_spans"][0]["start"] == 5


# --- Argilla --------------------------------------------------------------------------------------------------------------

ADA, BOB, CAM = "ada", "bob", "cam"


def record(spans=None, edits=None, **more):
    row = {"id": "a", "status": "completed", "_server_id": None, "completion": TEXT, **more}
    for name, responses in (("spans", spans), ("edit", edits)):
        users = None if responses is None else [user for user, _, _ in responses]
        row[f"{name}.responses"] = None if responses is None else [value for _, value, _ in responses]
        row[f"{name}.responses.users"] = users
        row[f"{name}.responses.status"] = None if responses is None else [status for _, _, status in responses]
    return row


def marked(*places, label="wrong"):
    return [{"start": start, "end": end, "label": label} for start, end in places]


def argilla_rows():
    suggestion = {"spans.suggestion": marked(WORSE), "spans.suggestion.score": 0.9, "spans.suggestion.agent": "model"}
    return [
        record([(ADA, marked(BAD), "submitted"), (BOB, marked(WORSE), "draft")], **suggestion),
        record([(ADA, [], "submitted"), (BOB, None, "discarded")]),
        record(),
        record([(ADA, marked(BAD), "submitted")], [(ADA, "A text.", "submitted"), (CAM, "A text!", "submitted")]),
    ]


def argilla_dataset(rows):
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


@pytest.mark.parametrize("kind", ["data set", ".parquet", ".jsonl", "folder"])
def test_argilla(tmp_path, kind):
    source = argilla_dataset(argilla_rows())
    if kind == ".parquet":
        source.to_parquet(source := tmp_path / "a.parquet")
    elif kind == ".jsonl":
        source.to_json(source := tmp_path / "a.jsonl")
    elif kind == "folder":
        source.save_to_disk(source := str(tmp_path / "a"))
    both = {"spans": "spans", "edit": "edit"}
    imported = import_dataset("argilla", source, columns={"spans": "spans"})
    assert imported.dataset.to_list() == [one_sided(BAD), one_sided(), one_sided(BAD), one_sided()]
    assert imported.counts == {"rows": 4, "kept": 4, "a draft": 1, "skipped": 1, "not annotated": 1}
    assert imported.notes == {"suggestions, which are no annotations": 1}
    pairs = import_dataset("argilla", source, columns=both)
    pair = {"prompt": "", "rejected": TEXT}
    assert pairs.dataset.to_list() == [
        {**pair, "chosen": "A text.", "rejected_spans": [[*BAD]]},
        {**pair, "chosen": "A text!", "rejected_spans": []},
    ]


def test_offsets_of_argilla():
    text = "😀 " + TEXT
    rows = argilla_dataset([record([(ADA, marked((5, 8)), "submitted")], completion=text)])
    with pytest.raises(ValueError, match="Row 0 of the data set: .*Argilla's page counts UTF-16 units"):
        import_dataset("argilla", rows, columns={"spans": "spans"})
    imported = import_dataset("argilla", rows, columns={"spans": "spans"}, offsets="utf-16")
    assert imported.dataset[0] == one_sided((4, 7), text=text)


def test_other_questions_and_labels_of_argilla():
    rows = argilla_dataset(
        [
            record(
                [(ADA, marked(BAD), "submitted")],
                **{
                    f"stars.responses{end}": [value]
                    for end, value in (("", 3), (".users", ADA), (".status", "submitted"))
                },
            )
        ]
    )
    imported = import_dataset("argilla", rows)
    assert imported.dataset[0] == one_sided(BAD)
    assert imported.notes == {"responses to stars, which are neither spans nor a text": 1}


# --- doccano --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "labels", "entities"])
def test_doccano(tmp_path, name):
    rows = [
        {"id": 1, "text": TEXT, name: [[*WORSE, "wrong"], [*BAD, "wrong"]], "Comments": []},
        {"id": 2, "text": TEXT, name: []},
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    imported = import_dataset("doccano", path)
    assert imported.dataset.to_list() == [one_sided(BAD, WORSE), one_sided()]
    assert imported.counts == {"rows": 2, "kept": 2} and imported.notes == {}


def test_doccano_with_relations_and_fields_of_the_data(tmp_path):
    entity = {"id": 3, "label": "wrong", "start_offset": BAD[0], "end_offset": BAD[1]}
    row = {"id": 1, "text": TEXT, "question": "Say it.", "entities": [entity], "relations": [{"id": 1}]}
    path = tmp_path / "all.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(ValueError, match=r"any of the fields \['text', 'question'\]"):
        import_dataset("doccano", path)
    imported = import_dataset("doccano", path, columns={"text": "text", "prompt": "question"}, labels={"wrong": 2})
    assert imported.dataset[0] == one_sided(BAD, prompt="Say it.", severities=[2.0])
    assert imported.notes == {"relations": 1}


def test_offsets_of_doccano(tmp_path):
    """Those of doccano's issue 2290: no text of the span is there to tell."""
    text = "👨🏻‍🚒 firemen drive firetrucks"
    for start, unit in ((22, "utf-16"), (19, "code-points"), (16, "graphemes")):
        path = tmp_path / f"{unit}.jsonl"
        path.write_text(json.dumps({"text": text, "label": [[start, start + 10, "wrong"]]}), encoding="utf-8")
        imported = import_dataset("doccano", path, offsets=unit)
        [place] = imported.dataset[0]["completion_spans"]
        assert text[place["start"] : place["end"]] == "firetrucks"
        with pytest.raises(ValueError, match="Row 0 of .*(nothing tells which|must lie within)"):
            import_dataset("doccano", path)


# --- what is wrong with a file --------------------------------------------------------------------------------------------


def broken(**changes):
    result = span()
    result["value"].update(changes)
    return [task(annotation(span("worse"))), task(annotation(result))]


@pytest.mark.parametrize(
    ("format", "rows", "message"),
    [
        (
            "label-studio",
            broken(start=3),
            "Row 1 of .*span \\[3, 5\\) of 'wrong' should have the text 'bad'.*there is 'ad'",
        ),
        ("label-studio", broken(end=99), r"Row 1 of .*span \[2, 99\).* within the 22 characters"),
        ("label-studio", broken(start="/div[1]/text()[1]"), "Row 1 of .*no character of a plain text"),
        ("label-studio", broken(end=None), "Row 1 of .*`end` must be a whole number, but is None"),
        ("label-studio", broken(labels=[]), "Row 1 of .*has no label"),
        ("label-studio", broken(labels=[3]), "Row 1 of .*`labels` must be a text, but is 3"),
        ("label-studio", broken(text=["bad"]), "Row 1 of .*`text` must be a text, but is"),
        ("label-studio", [task(annotation({"type": "hypertextlabels"}))], "Row 0 of .*'hypertextlabels'.*plain text"),
        (
            "label-studio",
            [task(annotation(span(), {**span("worse"), "to_name": "prompt"}))],
            "Row 0 of .*marks both 'text'",
        ),
        (
            "label-studio",
            [task(annotation(span("bad", control="a"), span("worse", control="b")))],
            r"\['a', 'b'\].*name",
        ),
        ("label-studio", [task({"id": 1})], "Row 0 of .*has no `result`"),
        ("label-studio", [task(7)], "Row 0 of .*`annotations` must be a dictionary, but is 7"),
        ("label-studio", [{"text": TEXT}], "Row 0 of .*neither a task"),
        ("label-studio", ["text"], "Row 0 of .*`row` must be a dictionary"),
        ("label-studio", [task(annotation())], "No annotation has a span"),
        ("label-studio", [task(annotation(span()), data={"n": 3})], "No field is a text in all rows"),
        ("label-studio", [task()], r"No row is left of .*\(rows: 1, kept: 0, not annotated: 1\)"),
        ("label-studio", [task(annotation(span(), area("half \ud83d")))], "Row 0 of .*half of a character"),
        ("doccano", [{"text": TEXT, "label": ["positive"]}], "Row 0 of .*'positive' in the place of a span"),
        ("doccano", [{"text": TEXT, "label": [[0, 2.5, "x"]]}], "Row 0 of .*must be a whole number, but is 2.5"),
        ("doccano", [{"text": TEXT}], "Row 0 of .*has no list `label` or `labels` or `entities`"),
        ("argilla", [{"text": TEXT}], "Row 0 of .*no column that ends in '.responses'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, format, rows, message):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        import_dataset(format, path)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "export.json"
    for data, message in (
        (b"[{", "export.json cannot be read"),
        (b"\xff", "export.json cannot be read: 'utf-8' codec"),
        (b'{"text": "a", "label": []}\n{"text"', "Row 1 of .*export.json"),
        (b"", r"No row is left of .*\(rows: 0, kept: 0\)"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            import_dataset("doccano", path)
    (tmp_path / "e.json.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="e.json.gz cannot be read"):
        import_dataset("doccano", tmp_path / "e.json.gz")
    with pytest.raises(ValueError, match="is no file: the format 'label-studio' reads a file"):
        import_dataset("label-studio", tmp_path)
    with pytest.raises(ValueError, match="have no effect"):
        import_dataset("doccano", path, split="test")
    with pytest.raises(ValueError, match="have no effect"):
        import_dataset("argilla", argilla_dataset(argilla_rows()), split="test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": {"chosen": "a"}}, r"takes the names .*not \['chosen'\]"),
        ({"columns": {"spans": "lable"}}, r"'lable' marks no span. Those that do: \['label'\]"),
        ({"columns": {"edit": "fix"}}, r"'fix' has no text that an annotator wrote. Those that do: \['edit'\]"),
        ({"columns": {"edit": "edit"}, "labels": ["wrong"]}, "`labels` has no effect"),
        ({"columns": {"edit": "edit"}, "annotators": "majority"}, "Edits have no majority"),
        ({"annotators": "most"}, "must be 'each' or 'majority'"),
        ({"annotators": "majority", "labels": {"wrong": 1}}, "Of a majority there is no severity"),
        ({"labels": "wrong"}, "must be a list of labels"),
        ({"labels": []}, "names no label"),
        ({"labels": {"wrong": 0}}, "must be a number above 0, but is 0"),
        ({"offsets": "bytes"}, "`offsets` must be one of"),
    ],
)
def test_bad_choices(tmp_path, arguments, message):
    path = write(tmp_path / "export.json", [task(annotation(span(), area("A text.")))])
    with pytest.raises(ValueError, match=message):
        import_dataset("label-studio", path, **arguments)


def test_choices_are_for_annotations(tmp_path):
    with pytest.raises(ValueError, match="are for annotations .* not 'hh-rlhf'"):
        import_dataset("hh-rlhf", tmp_path, offsets="utf-16")


# --- random mutations -----------------------------------------------------------------------------------------------------

JUNK = [None, True, -1, 10**30, 2.5, float("nan"), "", "x", "😀", "\ud83d", [], {}, [None], {"start": 0}, [[0, 1]]]


def places(value, path=()):
    """The path to every value within a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(value, generator):
    value = copy.deepcopy(value)
    for _ in range(generator.randrange(1, 4)):
        path = generator.choice([path for path in places(value) if path])
        at = value
        for key in path[:-1]:
            at = at[key]
        action = generator.choice(("replace", "remove", "repeat"))
        if action == "replace":
            at[path[-1]] = copy.deepcopy(generator.choice(JUNK))
        elif action == "remove":
            del at[path[-1]]
        elif isinstance(at, list):
            at.append(copy.deepcopy(at[path[-1]]))
        if not value:
            break
    return value


def valid():
    emoji = "😀 " + TEXT
    doccano = [{"id": 1, "text": TEXT, "label": [[*BAD, "wrong"]]}, {"id": 2, "text": emoji, "label": []}]
    doccano.append({"text": TEXT, "label": [{"id": 1, "label": "wrong", "start_offset": 0, "end_offset": 1}]})
    studio = [task(annotation(span(), area("A text.")), annotation(span("worse"))), with_emoji(5, 8, True), task()]
    smallest = [minimal(label=[span()["value"]], edit="A text."), minimal(edit=["a", "b"]), minimal(annotation_id=None)]
    return [
        ("label-studio", studio, {"spans": "label", "edit": "edit"}),
        ("label-studio", studio, {"spans": "label"}),
        ("label-studio", smallest, {"spans": "label", "edit": "edit", "text": "text"}),
        ("doccano", doccano, {}),
        ("argilla", argilla_rows(), {"spans": "spans", "edit": "edit"}),
    ]


@pytest.mark.parametrize("case", range(5))
def test_mutated_files_are_imported_or_refused(tmp_path, case):
    """No other exception; every error names a row, or says what must be named or is not there; and spans lie in their
    texts."""
    format, rows, names = valid()[case]
    generator = random.Random(case)
    path = tmp_path / "export.json"
    imports = 0
    for _ in range(120):
        path.write_text(json.dumps(mutated(rows, generator)), encoding="utf-8")
        # Arrow would refuse most of Argilla's mutations, before they come here.
        source = Rows(json.loads(path.read_text(encoding="utf-8"))) if format == "argilla" else path
        for arguments in ({}, {"columns": names}, {"columns": names, "offsets": "utf-16"}):
            try:
                dataset = import_dataset(format, source, **arguments).dataset
            except ValueError as error:
                assert ": " in str(error) and (
                    "Row " in str(error) or str(source) in str(error) or "No row" in str(error)
                )
                continue
            imports += 1
            for row in dataset:
                assert all(
                    0 <= s["start"] < s["end"] <= len(row["completion"]) for s in row.get("completion_spans", ())
                )
                assert all(0 <= start < end <= len(row["rejected"]) for start, end in row.get("rejected_spans", ()))
    assert imports > 30


class Rows(list):
    """A data set as far as the importer looks at it."""

    def with_format(self, _):
        return self

    def __str__(self):
        return "the data set"


# --- the command line -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    results = [span("bad", ["minor"]), span("worse", ["a=b"])]
    data = {"answer": TEXT, "question": "Say it."}
    source = write(tmp_path / "export.json", [task(annotation(*results), annotation(*results), data=data)])
    output = tmp_path / "out.jsonl"
    arguments = ["import", "label-studio", str(source), str(output), "--text", "answer", "--prompt", "question"]
    labels = ["--label", "minor=.5", "--label", "a=b=1"]
    assert cli.main([*arguments, "--spans", "label", "--offsets", "code-points", *labels]) == 0
    printed = capsys.readouterr().out
    assert "rows read" in printed and "Saved to" in printed
    assert load_split(output, "train")[0] == one_sided(BAD, WORSE, prompt="Say it.", severities=[0.5, 1.0])
    output.unlink()
    assert cli.main([*arguments, "--annotators", "majority", "--label", "minor"]) == 0
    assert "joined with another annotation" in (printed := capsys.readouterr().out) and "which is not wrong" in printed
    assert load_split(output, "train").to_list() == [one_sided(BAD, prompt="Say it.")]
    output.unlink()
    assert cli.main([*arguments, "--label", "minor=bad"]) == 2
    assert "--label minor=bad: give each label a severity" in capsys.readouterr().err
