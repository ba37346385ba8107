"""Data files that cannot be read, and where tokenizers are loaded from."""

import gzip
import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import tiny
from trl_tokenreward import TokenScorer
from trl_tokenreward.grpo.sources import load_source
from trl_tokenreward.utils.loading import load_split


pytestmark = pytest.mark.any_trl

ROW = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
FILES = {
    "empty.jsonl": (b"", "has no rows"),
    "blank.jsonl": (b"\n\n", "has no rows"),
    "list.json": (b"[]", "has no rows"),
    "head.csv": (b"prompt,chosen\n", "has no rows"),
    "empty.jsonl.gz": (b"", "has no rows"),
    "cut.jsonl": (ROW * 2 + ROW[:20], "cannot be read: .*in row 2"),
    "cut.jsonl.gz": (gzip.compress(ROW * 2000)[:60], "cannot be read: EOFError"),
    "cut.csv": (b'a,b\n"x,1\n', "cannot be read"),
    "cut.parquet": (b"PAR1abc", "cannot be read"),
    "empty.parquet": (b"", "cannot be read"),
    "latin.jsonl": ('{"a": "é"}\n'.encode("latin-1"), "cannot be read: UnicodeDecodeError"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_empty_or_cut_are_named(name, streaming, tmp_path):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        load_split(tmp_path / name, "train", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_without_data_are_named(streaming, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be read: EmptyDatasetError"):
        load_split(tmp_path / "empty", "train", streaming=streaming)
    Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="saved cannot be read"):
        load_split(tmp_path / "saved", "train", streaming=streaming)


DATES = ("2020-01-02", "2020-01-02 10:00:00", "1999-12-31T23:59:59Z", None)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "rows.jsonl.gz"])
@pytest.mark.parametrize("loaded", ["file", "folder", "part"])
@pytest.mark.parametrize("dates", [DATES, DATES[:1] * 4, (None, *DATES[1:])], ids=str)
def test_dates_of_json_are_texts(dates, loaded, name, streaming, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": date}],
            "chosen": date,
            "rejected": "b",
            "more": {"id": i, "at": [date]},
        }
        for i, date in enumerate(dates)
    ]
    lines = [json.dumps(row) for row in rows]
    text = f"[{', '.join(lines)}]" if name == "list.json" else "\n".join(lines)
    path = (tmp_path / "part" if loaded == "part" else tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    config = "part" if loaded == "part" else None
    source = path if loaded == "file" else tmp_path
    assert list(load_split(source, "train", config, streaming=streaming)) == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_dates_of_one_split_leave_the_others(streaming, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"chosen": "2020-01-02", "rejected": "b"}\n' * 2)
    (tmp_path / "test.jsonl").write_text('{"chosen": "a", "rejected": "2020-01-02T00:00:00Z"}\n')
    rows = [list(load_split(tmp_path, split, streaming=streaming)) for split in ("train", "test")]
    assert rows == [
        [{"chosen": "2020-01-02", "rejected": "b"}] * 2,
        [{"chosen": "a", "rejected": "2020-01-02T00:00:00Z"}],
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("file", "name", "config"),
    [
        ("pairs/train.csv", "pairs/train.csv", None),
        ("pairs/train.csv", "pairs", None),
        ("pairs/train.csv.gz", "pairs", None),
        ("pairs/data/train.csv", "pairs", None),
        ("pairs/part/train.csv", "pairs", "part"),
    ],
)
def test_texts_of_csv_are_texts(file, name, config, streaming, tmp_path):
    content = b'prompt,chosen,rejected,margin\nNone,NA,42,0.5\n"",05,nan,\n'
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    (path.parent / "LICENSE").write_text("as you like")
    assert list(load_split(tmp_path / name, "train", config, streaming=streaming)) == [
        {"prompt": "None", "chosen": "NA", "rejected": "42", "margin": 0.5},
        {"prompt": None, "chosen": "05", "rejected": "nan", "margin": None},
    ]


def test_a_table_beside_the_data_is_none_of_them(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(ROW * 2)
    (tmp_path / "test.jsonl").write_bytes(ROW)
    (tmp_path / "scores.csv").write_text("a,b\n1,2\n")
    assert [len(load_split(tmp_path, split)) for split in ("train", "test")] == [2, 1]


@pytest.mark.parametrize(
    ("load", "revision"),
    [
        (lambda folder, **kwargs: load_source(folder, None, None, kwargs), "v2"),
        (lambda folder, **kwargs: TokenScorer.from_pretrained(folder, **kwargs), "v2"),
        (lambda folder, **kwargs: TokenScorer.from_pretrained(folder, tokenizer=folder, **kwargs), None),
    ],
    ids=["grpo", "scorer", "scorer with a tokenizer of its own"],
)
def test_a_tokenizer_is_of_the_models_revision(load, revision, tmp_path, monkeypatch):
    tiny.unigram_reward_model({3: 1.0}).save_pretrained(tmp_path)
    asked = {}
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, **kwargs: asked.update(kwargs) or tiny.word_tokenizer()
    )
    load(str(tmp_path), revision="v2", token="hf_x", dtype="float32")
    assert asked == {"revision": revision, "token": "hf_x", "trust_remote_code": False}
