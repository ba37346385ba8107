"""Importers, on rows worked by hand and on the real files."""

import csv
import gzip
import json
import re

import numpy as np
import pytest
from datasets import Dataset, List, Value

import tiny
from shared_data import shared_file
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.importers import FORMATS, import_dataset
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.utils.loading import load_split, save_dataset


pytestmark = pytest.mark.any_trl

DIALOGUE = "\n\nHuman: hi\n\nAssistant:"


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def write(path, rows):
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def test_hh_rlhf(tmp_path):
    rows = [
        {"chosen": DIALOGUE + " good day", "rejected": DIALOGUE + " go away"},
        {"chosen": DIALOGUE + " same", "rejected": DIALOGUE + " same"},
        {"chosen": DIALOGUE + " ", "rejected": DIALOGUE + " rude"},
        {"chosen": DIALOGUE + " something", "rejected": DIALOGUE},
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
    ]
    imported = import_dataset("hh-rlhf", write(tmp_path / "hh.jsonl", rows))
    assert imported.dataset.to_list() == [{"prompt": DIALOGUE, "chosen": " good day", "rejected": " go away"}]
    assert imported.counts == {
        "rows": 5,
        "kept": 1,
        "the edit is the original": 1,
        "the edit is empty": 1,
        "the original is empty": 1,
        "the sides share no prompt": 1,
    }


def test_ultrafeedback(tmp_path):
    rows = [
        {
            "prompt": "hi",
            "chosen": [user("hi"), assistant("hello")],
            "rejected": [user("hi"), assistant("what")],
            "score_chosen": 8.0,
        },
        {"prompt": "hi", "chosen": [user("hi"), assistant("x")], "rejected": [user("hi"), assistant("x")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("")], "rejected": [user("hi"), assistant("x")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("y")], "rejected": [user("ho"), assistant("x")]},
    ]
    imported = import_dataset("ultrafeedback", write(tmp_path / "uf.jsonl", rows))
    row = {"prompt": [user("hi")], "chosen": [assistant("hello")], "rejected": [assistant("what")]}
    assert imported.dataset.to_list() == [row]
    reasons = ("the edit is the original", "the edit is empty", "the sides share no prompt")
    assert imported.counts == {"rows": 4, "kept": 1, **dict.fromkeys(reasons, 1)}


@pytest.mark.parametrize(
    "more",
    [
        {"content": "", "tool_calls": [{"name": "look"}]},
        {"content": None, "tool_calls": [{"name": "look"}]},  # as OpenAI has it
        {"tool_calls": [{"name": "look"}]},
        {"content": [{"type": "text", "text": "d"}]},
    ],
)
def test_messages_with_more_than_a_text_are_dropped_and_counted(more, tmp_path):
    user, good = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None}
    rows = [
        {"chosen": [user, good], "rejected": [user, {**good, "content": "c"}]},
        {"chosen": [user, good], "rejected": [user, {"role": "assistant", **more}]},
    ]
    for format, columns in (("ultrafeedback", None), ("columns", {"chosen": "chosen", "rejected": "rejected"})):
        imported = import_dataset(format, write(tmp_path / "more.jsonl", rows), columns=columns)
        assert imported.counts == {"rows": 2, "kept": 1, "a message has more than a text": 1}


def test_messages_that_are_none():
    rows = [{"chosen": [user("a"), assistant(None)], "rejected": [user("a"), assistant("c")]}]
    with pytest.raises(ValueError, match="Row 0 of the data set: `content` must be a text, but is None"):
        import_dataset("ultrafeedback", Dataset.from_list(rows))
    rows[0]["chosen"][1] = {"content": "b"}
    with pytest.raises(ValueError, match="Row 0 of the data set: `chosen` has a message without `role`"):
        import_dataset("ultrafeedback", Dataset.from_list(rows))
    with pytest.raises(ValueError, match="has a transform"):
        import_dataset("ultrafeedback", Dataset.from_list(rows).with_transform(lambda batch: batch))


def test_a_loaded_data_set():
    row = {"chosen": DIALOGUE + " good day", "rejected": DIALOGUE + " go away"}
    pair = {"prompt": DIALOGUE, "chosen": " good day", "rejected": " go away"}
    loaded = Dataset.from_list([row])
    for source in (loaded, loaded.with_format("torch"), loaded.to_iterable_dataset()):
        assert import_dataset("hh-rlhf", source).dataset.to_list() == [pair]
    with pytest.raises(ValueError, match="Row 0 of the data set: has no `chosen`"):
        import_dataset("hh-rlhf", loaded.rename_column("chosen", "good"))
    with pytest.raises(ValueError, match="no effect on a data set that is loaded"):
        import_dataset("hh-rlhf", loaded, split="test")


def qa_row(answer, correction, spans):
    errors = [{"start": start, "end": end, "error type": "Irrelevant", "explanation": ""} for start, end in spans]
    feedback = {"errors": errors, "missing-info": [], "corrected-prediction": correction}
    return {"question": "who? ", "prediction 1": answer, "feedback": feedback}


def test_qa_feedback(tmp_path):
    rows = [
        qa_row("Bad. Good.", "Good.", [(0, 4)]),
        qa_row("Good.", "Good. More.", []),
        qa_row("Bad.", "Bad.", [(0, 3)]),
    ]
    path = tmp_path / "qa.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    imported = import_dataset("qa-feedback", path)
    prompt = "Question: who?\nAnswer:"
    assert imported.dataset.to_list() == [
        {"prompt": prompt, "chosen": " Good.", "rejected": " Bad. Good.", "rejected_spans": [[1, 5]]},
        {"prompt": prompt, "chosen": " Good. More.", "rejected": " Good.", "rejected_spans": []},
    ]
    assert imported.counts == {"rows": 3, "kept": 2, "marked, but the edit is the original": 1}
    assert imported.dataset.features["rejected_spans"] == List(List(Value("int64")))


def test_paradetox(tmp_path):
    tsv = 'toxic\tneutral1\tneutral2\tneutral3\n"you fool !\tYou!\tyou there\tYou!\nbe quiet\t\t\t\nNA\tNA\t12\n'
    imported = import_dataset("paradetox", write(tmp_path / "p.tsv", tsv))
    pairs = [('"you fool !', "You!"), ('"you fool !', "you there"), ("NA", "12")]
    assert imported.dataset.to_list() == [
        {"prompt": "", "chosen": edited, "rejected": original} for original, edited in pairs
    ]
    reasons = ("a rewrite given twice", "a sentence without a rewrite", "the edit is the original")
    assert imported.counts == {"rows": 3, "kept": 3, **dict.fromkeys(reasons, 1)}


def test_quotation_marks_in_files_of_tabs(tmp_path):
    """Those of CSV where all are, else parts of the texts."""
    quoted = 'toxic\tneutral1\n"he said ""you\tfool"""\tHe spoke.\n"two\nlines"\ta "b"\n'
    [first, second] = import_dataset("paradetox", write(tmp_path / "q.tsv", quoted)).dataset
    assert (first["rejected"], first["chosen"]) == ('he said "you\tfool"', "He spoke.")
    assert (second["rejected"], second["chosen"]) == ("two\nlines", 'a "b"')
    # A cell that would end after very many lines begins with a mark of the text.
    stray = 'toxic\tneutral1\n"you fool\tYou\n' + f"{'so ' * 500}bad\tgood\n" * 100 + 'so I said"\tI spoke\n'
    dataset = import_dataset("paradetox", write(tmp_path / "stray.tsv", stray)).dataset
    assert len(dataset) == 102 and dataset[0]["rejected"] == '"you fool'


def test_paradetox_of_the_hub(tmp_path):
    rows = [{"en_toxic_comment": "you fool", "en_neutral_comment": "you"}]
    imported = import_dataset("paradetox", write(tmp_path / "p.jsonl", rows))
    assert imported.dataset.to_list() == [{"prompt": "", "chosen": "you", "rejected": "you fool"}]


CSV = 'id,before,after,wrong,question\n1,"a ""b"", c",a b c,"[[2, 5]]",q\n2,42,NA,[],\n'
NAMES = {"chosen": "after", "rejected": "before"}


def test_columns_of_csv_are_texts(tmp_path):
    names = {**NAMES, "prompt": "question", "spans": "wrong"}
    imported = import_dataset("columns", write(tmp_path / "e.csv", CSV), columns=names)
    assert imported.dataset.to_list() == [
        {"prompt": "q", "chosen": "a b c", "rejected": 'a "b", c', "rejected_spans": [[2, 5]]},
        {"prompt": "", "chosen": "NA", "rejected": "42", "rejected_spans": []},
    ]
    empty = import_dataset("columns", write(tmp_path / "f.csv", CSV.replace("[]", "")), columns=names).dataset
    assert empty["rejected_spans"][:] == [[[2, 5]], None]  # nobody marked it, which is not that all is right
    without = import_dataset("columns", tmp_path / "e.csv", columns=NAMES).dataset
    assert without[0] == {"prompt": "", "chosen": "a b c", "rejected": 'a "b", c'}


def test_columns_of_parquet_may_be_messages(tmp_path):
    rows = [{"before": [user("hi"), assistant("bad one")], "after": [user("hi"), assistant("one")], "wrong": [[0, 3]]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "e.parquet")
    imported = import_dataset("columns", tmp_path / "e.parquet", columns={**NAMES, "spans": "wrong"})
    assert imported.dataset.to_list() == [
        {
            "prompt": [user("hi")],
            "chosen": [assistant("one")],
            "rejected": [assistant("bad one")],
            "rejected_spans": [[0, 3]],
        }
    ]


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.csv.gz"])
def test_cells_of_any_length(name, tmp_path):
    text, tabs, limit = "so bad " * 20_000, "tsv" in name, csv.field_size_limit()
    rows = f"before,after\n{text},better\n".replace(",", "\t" if tabs else ",").encode()
    (tmp_path / name).write_bytes(gzip.compress(rows) if name.endswith("gz") else rows)
    assert import_dataset("columns", tmp_path / name, columns=NAMES).dataset[0]["rejected"] == text
    assert csv.field_size_limit() == limit


GOOD = {"before": "bad text", "after": "text", "wrong": [[0, 3]]}


def test_severities_of_spans_are_kept():
    severe, mild = {"start": 0, "end": 3, "severity": 5.0}, {"start": 4, "end": 5, "severity": None}
    rows = [{**GOOD, "wrong": json.dumps(spans)} for spans in ([[4, 5]], [severe, mild], [])]
    names = {**NAMES, "spans": "wrong"}
    dataset = import_dataset("columns", Dataset.from_list(rows), columns=names).dataset
    assert dataset["rejected_spans"][:] == [[mild], [severe, mild], []]
    rows += [{**GOOD, "wrong": None}]
    dataset = import_dataset("columns", Dataset.from_list(rows), columns=names).dataset
    assert dataset["rejected_spans"][:] == [[mild], [severe, mild], [], None]
    prepared, _ = prepare_dataset(dataset, tiny.tokenizer())
    assert max(prepared[1]["rejected_token_weights"]) == 5
    rows = [{**GOOD, "wrong": [mild]}]  # without a severity, they are as always
    assert import_dataset("columns", Dataset.from_list(rows), columns=names).dataset["rejected_spans"][:] == [[[4, 5]]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "after": None}, "Row 1 of .*: `after` must be a text, but is None"),
        ({**GOOD, "wrong": 5}, "Row 1 of .*: spans must be a list.*but are 5"),
        ({**GOOD, "wrong": [[5, 9]]}, r"Row 1 of .*: the span \[5, 9\) must lie within the 8 characters"),
        ({**GOOD, "wrong": [{"start": 0, "end": 3, "severity": 0}]}, "Row 1 of .*: the `severity` of a span must be"),
        ({**GOOD, "wrong": [[5]]}, r"Row 1 of .*: a span is \[start, end\].*one is \[5\]"),
    ],
)
def test_a_bad_row_is_named(row, message, tmp_path):
    path = write(tmp_path / "e.jsonl", [GOOD, row])
    with pytest.raises(ValueError, match=message):
        import_dataset("columns", path, columns={**NAMES, "spans": "wrong"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("e.csv", "before,after\na,b\nc,d,e\n", "Row 1 of .*: has more fields than the header"),
        ("e.csv", "before,after\na,b\nc\n", "Row 1 of .*: `after` must be a text, but is None"),
        ("e.csv", 'before,after\na,"b"c\n', "Row 0 of .*: ',' expected"),
        ("e.csv", "before,other\na,b\n", r"Row 0 of .*: has no `after`, only \['before', 'other'\]"),
        ("e.csv", "before,after\n", r"No pair is left of .* \(rows: 0, kept: 0\)"),
    ],
)
def test_a_bad_file_says_where(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_dataset("columns", write(tmp_path / name, text), columns=NAMES)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="must be one of .*'paradetox'.* but is 'hh'"):
        import_dataset("hh", tmp_path)
    with pytest.raises(ValueError, match="'hh-rlhf' has columns of its own"):
        import_dataset("hh-rlhf", tmp_path, columns=NAMES)
    with pytest.raises(ValueError, match="needs the columns"):
        import_dataset("columns", tmp_path, columns={"chosen": "after"})


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "folder/out"])
def test_the_command_saves_what_load_split_reads(name, tmp_path, capsys):
    source = write(tmp_path / "e.csv", CSV)
    output = tmp_path / name
    arguments = ["import", "columns", str(source), str(output), "--chosen", "after", "--rejected", "before"]
    assert cli.main(arguments + ["--spans", "wrong"]) == 0
    printed = capsys.readouterr().out
    assert "rows read" in printed and f"Saved to {output}." in printed
    expected = import_dataset("columns", source, columns={**NAMES, "spans": "wrong"}).dataset
    assert load_split(output, "train").to_list() == expected.to_list()
    with pytest.raises(ValueError, match="exists already"):
        save_dataset(expected, output)


def test_every_format_is_there():
    from trl_tokenreward.data.importers import _CONVERT, _TOOLS

    assert FORMATS.keys() == _CONVERT.keys() | {*_TOOLS, "columns"}


def test_real_hh_rlhf_trains_on_the_same_tokens(tmp_path):
    with gzip.open(shared_file("hh-rlhf-harmless-base-test.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(60), strict=False)]
    imported = import_dataset("hh-rlhf", write(tmp_path / "hh.jsonl", rows))
    assert imported.counts == {"rows": 60, "kept": 60}
    tokenizer = tiny.tokenizer()
    ours, theirs = (prepare_dataset(data, tokenizer)[0] for data in (imported.dataset, Dataset.from_list(rows)))
    assert ours.to_list() == theirs.to_list()


def test_real_qa_feedback():
    imported = import_dataset("qa-feedback", shared_file("qa-feedback-dev.json.gz"))
    # Six answers were left as they are, and of thirteen nothing was right.
    reasons = {"the edit is the original": 6, "the edit is empty": 13}
    assert imported.counts == {"rows": 500, "kept": 481, **reasons}
    with gzip.open(shared_file("qa-feedback-dev.json.gz"), "rt", encoding="utf-8") as file:
        [first, *_] = json.load(file)
    row, span = imported.dataset[0], first["feedback"]["errors"][0]
    start, end = row["rejected_spans"][0]
    assert row["rejected"][start:end] == first["prediction 1"][span["start"] : span["end"]]
    prepared, dropped = prepare_dataset(imported.dataset.select(range(20)), tiny.tokenizer())
    assert dropped.counts()["kept"] == 20 and any(prepared[0]["rejected_edit_mask"])


def test_real_paradetox():
    imported = import_dataset("paradetox", shared_file("paradetox-8000.tsv"))
    counts = imported.counts
    assert counts == {"rows": 7992, "kept": 12347, "the edit is the original": 121, "a rewrite given twice": 269}
    row = {"prompt": "", "chosen": "he was brave too!", "rejected": "he had steel balls too !"}
    assert imported.dataset[0] == row and len(imported.dataset) == counts["kept"]
    assert not [text for pair in imported.dataset for text in pair.values() if '""' in text]


class TestToxicSpans:
    def test_golden(self, tmp_path):
        path = tmp_path / "posts.csv"
        path.write_text(
            'spans,text\n"[0, 1, 2, 3, 9, 8]",Damn, sad\n'.replace("Damn, sad", '"Damn, 😀 sad"')
            + '[],"so\nit is"\n[],\n',
            encoding="utf-8",
        )
        imported = import_dataset("toxic-spans", path)
        assert imported.dataset.to_list() == [
            {"completion": "Damn, 😀 sad", "completion_spans": [[0, 4], [8, 10]]},
            {"completion": "so\nit is", "completion_spans": []},
        ]
        assert imported.counts == {"rows": 3, "kept": 2, "the text is empty": 1}
        rows, _ = prepare_dataset(imported.dataset, tiny.tokenizer())
        assert any(rows[0]["rejected_edit_mask"]) and not any(rows[1]["rejected_edit_mask"])

    @pytest.mark.parametrize(
        ("spans", "message"),
        [
            ("[0, 9]", "`spans` has the place 9, but `text` has 4 characters"),
            ("[-1]", "`spans` has the place -1"),
            ("[1, 2", "`spans` is no list of characters"),
            ("{}", "`spans` must be a list of the places"),
            ("[true]", "`spans` must be a list of the places"),
            ("[1.5]", "`spans` must be a list of the places"),
            ("", "`spans` is no list"),
        ],
    )
    def test_malformed(self, spans, message, tmp_path):
        path = tmp_path / "posts.csv"
        path.write_text(f'spans,text\n[],good\n"{spans}",four\n', encoding="utf-8")
        with pytest.raises(ValueError, match=rf"Row 1 of .*posts\.csv: {message}"):
            import_dataset("toxic-spans", path)

    def test_anything_is_read_or_refused_with_its_row(self, tmp_path):
        """Random rows: what is read marks the given places, and an error names row and column."""
        random = np.random.default_rng(0)
        pieces = ["[", "]", "1", "2", ",", " ", "-1", "0", "a", '"', "null", "9e9", "[1]", "é"]
        path, kept = tmp_path / "rows.jsonl", 0
        for _ in range(300):
            text = "".join(random.choice([*"ab 😀\n"], random.integers(0, 6)))
            spans = "".join(random.choice(pieces, random.integers(0, 7)))
            if random.random() < 0.4:
                spans = str(random.integers(0, 5, random.integers(0, 4)).tolist())
            write(path, [{"text": "ok", "spans": "[0]"}, {"text": text, "spans": spans}])
            try:
                row = import_dataset("toxic-spans", path).dataset.to_list()[-1]
            except ValueError as error:
                assert re.search(r"Row 1 of .*: .*`spans`", str(error), re.DOTALL), error
                continue
            if row["completion"] == text:
                kept += 1
                assert {i for a, b in row["completion_spans"] for i in range(a, b)} == set(json.loads(spans))
        assert kept > 20

    def test_the_real_files(self):
        imported = import_dataset("toxic-spans", shared_file("toxic-spans-trial.csv.gz"))
        assert imported.counts == {"rows": 690, "kept": 690}
        assert sum(not spans for spans in imported.dataset["completion_spans"]) == 43
        first = imported.dataset[0]
        assert [first["completion"][a:b] for a, b in first["completion_spans"]] == ["moron", "bigot"]
