"""The benchmarks of alignment and of scoring, at the smallest size, from end to end."""

import gzip
import json
import random

import pytest

import tiny
from benchmarks import alignment, scoring


pytestmark = pytest.mark.any_trl


def test_alignment(tmp_path, capsys):
    rng = random.Random(0)
    words = " ".join(tiny.CORPUS).split()
    with gzip.open(tmp_path / alignment.FILE, "wt", encoding="utf-8") as lines:
        for _ in range(20):
            prompt = f"\n\nHuman: {' '.join(rng.choices(words, k=8))}\n\nAssistant:"
            row = {side: f"{prompt} {' '.join(rng.choices(words, k=20))}" for side in ("chosen", "rejected")}
            lines.write(json.dumps(row) + "\n")
    output = tmp_path / "alignment.md"
    options = [
        "--data",
        str(tmp_path),
        "--pairs",
        "50",
        "--lengths",
        "8",
        "64",
        "--repeats",
        "2",
        "--vocab-size",
        "300",
    ]
    alignment.main([*options, "--output", str(output)])
    table = output.read_text(encoding="utf-8")
    assert "| 8 |" in table and "| 64 |" in table and "64 ÷ 8 (8 × the length)" in table
    assert "preparation, 50 pairs, 2 workers" in table and "50 of 50 rows are kept" in table
    assert str(tmp_path) not in table
    assert "difflib" in capsys.readouterr().out


def test_texts_have_the_length_asked_for_and_edits_the_rate():
    texts = tiny.CORPUS * 200
    tokenizer = alignment.train_tokenizer(texts, 300)
    cut = alignment.cut_texts(texts, 500, 3, tokenizer)
    assert [len(tokenizer(text)["input_ids"]) for text in cut] == [500] * 3 and len(set(cut)) > 1
    words = [str(number) for number in range(5000)]
    edited = alignment.edit(" ".join(words), ["new"], random.Random(0)).split(" ")
    kept = len(set(words) & set(edited))
    # A third of the edits keep their word and put another behind it.
    assert len(words) - kept == pytest.approx(0.1 * 2 / 3 * 5000, rel=0.15)
    assert edited.count("new") == pytest.approx(0.1 * 2 / 3 * 5000, rel=0.15)


def test_scoring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scoring, "SECONDS", 0)
    output = tmp_path / "scoring.md"
    scoring.main(["--settings", "tiny", "--repeats", "3", "--output", str(output)])
    table = output.read_text(encoding="utf-8")
    assert table.count("| hidden 16, 2 layers, 2 × 12") == 2 and "ratio (at most 1.05)" in table
    assert "score_texts" in capsys.readouterr().out
