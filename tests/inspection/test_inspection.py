"""`trl-tokenreward inspect`: counts, ratios and kinds worked by hand, and a page on which nothing gets through."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console

import tiny
from shared_data import shared_file
from trl_tokenreward import align_edits
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.importers import import_dataset
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.edits.alignment import align_words
from trl_tokenreward.edits.diff import Piece, diff_pieces
from trl_tokenreward.inspection.page import write_page
from trl_tokenreward.inspection.report import inspect_dataset, print_inspection


pytestmark = pytest.mark.any_trl

ROWS = [
    {"prompt": "", "chosen": "a b c d", "rejected": "a b c e"},  # 2 of 8 words
    {"prompt": "", "chosen": "a b", "rejected": "a b"},  # identical
    {"prompt": "", "chosen": "a b d", "rejected": "a b c d e"},  # 2 of 8
    {"prompt": "", "chosen": "f g", "rejected": "h i"},  # all
    {"prompt": "", "chosen": "a  b", "rejected": "a b"},  # white space
    {"prompt": "", "chosen": "a b c", "rejected": "a b"},  # 1 of 5
]


SAID = {"role": "assistant", "content": "a"}


def pair(**columns):
    return Dataset.from_list([{"prompt": "", "chosen": "b", "rejected": "a", **columns}])


class TestFigures:
    def test_words(self):
        inspection = inspect_dataset(Dataset.from_list(ROWS), max_edit_ratio=0.5)
        assert inspection.unit == "words"
        assert inspection.counts == {"rows": 6, "kept": 4, "identical": 1, "too_long": 0, "not_minimal": 1}
        assert inspection.without_edits == 1
        assert [row.ratio for row in inspection.rows] == [0.25, 0.0, 0.25, 1.0, 0.0, 0.2]
        assert inspection.ratios.tolist() == [0.25, 0.25, 1.0, 0.0, 0.2]
        assert inspection.kinds == {"replace": 2, "delete": 2, "insert": 1, "white space": 1}
        assert [row.index for row in inspection.worst(4)] == [3, 0, 2, 5]
        assert inspection.rows[3].outcome == "not_minimal"

    def test_the_transform_of_a_data_set_is_applied(self):
        rows = Dataset.from_list([{"prompt": "", "chosen": "a b", "rejected": "a c"}])
        shown = rows.with_transform(lambda batch: {**batch, "chosen": ["a c d"]})
        assert inspect_dataset(shown).kinds == {"replace": 0, "delete": 0, "insert": 1, "white space": 0}

    def test_columns_that_a_row_lacks(self):
        rows = [{"prompt": None, "rejected_spans": None, **row} for row in ROWS]
        rows[1]["rejected_spans"] = [[0, 1]]
        for tokenizer in (None, tiny.word_tokenizer()):
            inspection = inspect_dataset(Dataset.from_list(rows), tokenizer)
            assert [row.ratio for row in inspection.rows] == [0.25, 0.25, 0.25, 1.0, 0.0, 0.2]

    def test_summary(self):
        summary = inspect_dataset(Dataset.from_list(ROWS)).summary()
        assert dict(summary["rows"])["identical"] == "1"
        ratios = dict(summary["edit ratio, in words, of the rows that are not identical"])
        assert ratios["median"] == "0.250" and ratios["greatest"] == "1.000"
        bins = [(name, int(count), len(bar)) for name, count, bar in summary["rows by edit ratio"] if count != "0"]
        assert bins == [("0.0 to 0.1", 1, 10), ("0.2 to 0.3", 3, 30), ("0.9 to 1.0", 1, 10)]
        assert summary["edits by kind"][0] == ("replace", "2", "33.3%")

    @pytest.mark.parametrize("limits", [{}, {"max_length": 5, "max_edit_ratio": 0.3}])
    def test_with_a_tokenizer_rows_count_as_in_training(self, limits):
        tokenizer = tiny.word_tokenizer()
        inspection = inspect_dataset(Dataset.from_list(ROWS), tokenizer, **limits)
        assert inspection.unit == "tokens"
        assert inspection.counts == prepare_dataset(Dataset.from_list(ROWS), tokenizer, **limits)[1].counts()
        # Words, with a tokenizer or without; one that drops white space sees none of it.
        assert [row.ratio for row in inspection.rows] == [2 / 8, 0, 2 / 8, 4 / 4, 0, 1 / 5]
        assert inspection.rows[4].outcome == "identical" and inspection.without_edits == 0
        if limits:
            assert inspection.counts == {"rows": 6, "kept": 2, "identical": 2, "too_long": 1, "not_minimal": 1}

    @pytest.mark.parametrize("tokenizer", [None, tiny.word_tokenizer()], ids=["words", "tokens"])
    def test_spans_are_the_edit(self, tokenizer):
        rows = [{"prompt": "", "chosen": "a b", "rejected": "a b c d", "rejected_spans": [[4, 5]]}]
        [row] = inspect_dataset(Dataset.from_list(rows), tokenizer).rows
        assert row.ratio == 1 / 6 and row.outcome == "kept"

    def test_other_formats(self):
        dialogue = "\n\nHuman: hi\n\nAssistant:"
        messages = {
            side: [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "a b"), ("rejected", "a c"))
        }
        texts = {"chosen": f"{dialogue} a b", "rejected": f"{dialogue} a c"}
        for row, prompt, lead in ((texts, dialogue, " a "), (messages, "user: hi", "a ")):
            inspection = inspect_dataset(Dataset.from_list([row]))
            assert inspection.diff(0) == (prompt, [Piece("keep", lead), Piece("delete", "c"), Piece("insert", "b")])

    def test_what_is_no_text_is_shown_as_json(self):
        def said(content, **more):
            return {"role": "assistant", "content": content, **more}

        call = {"name": "look_up", "arguments": {"what": "a"}}
        prompt = [
            {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]},
            said(None, tool_calls=[call]),
            {"role": "tool", "content": "b", "name": "look_up"},
        ]
        rows = [
            {"prompt": prompt, "chosen": [said("a b")], "rejected": [said("a c")]},
            {"prompt": prompt, "chosen": [said(None, tool_calls=[call])], "rejected": [said("a c")]},
        ]
        inspection = inspect_dataset(Dataset.from_list([{**row, "prompt": prompt[1:]} for row in rows]))
        shown = 'assistant: {"tool_calls": [{"name": "look_up", "arguments": {"what": "a"}}]}\n\ntool: b\n{"name": "look_up"}'
        lead = [Piece("keep", "a "), Piece("delete", "c"), Piece("insert", "b")]
        assert inspection.diff(0) == (shown, lead)
        assert "".join(p.text for p in inspection.diff(1)[1] if p.kind != "delete") == json.dumps(
            {"tool_calls": [call]}
        )
        rows = Dataset.from_list([{**row, "prompt": prompt[:1]} for row in rows])
        assert inspect_dataset(rows).diff(0)[0] == 'user: [{"type": "text", "text": "hi"}, {"type": "image"}]'

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (Dataset.from_dict({"chosen": []}), "The data set has no rows"),
            (pair(chosen=None), "Row 0 .*: column `chosen`: must be a text or a list of messages, but is None"),
            (pair(prompt=[{"role": "user", "content": "x"}]), "Row 0 .*: the columns must all be texts"),
            (pair(rejected_spans=[[0, 9]]), r"Row 0 .*: the span \[0, 9\)"),
            (pair(chosen_ids=[1], rejected_ids=[2]), "Row 0 .*: has token ids"),
            (pair(prompt=["hi"], chosen=["a"], rejected=["b"]), "Row 0 .*: column `prompt`: messages need `role`"),
            (
                pair(prompt=[{"content": "hi"}], chosen=[SAID], rejected=[SAID]),
                "Row 0 .*`prompt`: messages need `role`",
            ),
            (pair(prompt=[SAID], chosen=[{"content": "a"}], rejected=[SAID]), "Row 0 .*`chosen`: messages need `role`"),
            (pair(prompt=[SAID], chosen=[SAID], rejected=[SAID | {"content": None}]), "Row 0 .*: a completion needs"),
            (pair(prompt=[SAID], chosen=[SAID], rejected=[]), "Row 0 .*`rejected`: has no messages"),
        ],
    )
    def test_what_cannot_be_inspected(self, dataset, message):
        with pytest.raises(ValueError, match=message):
            inspect_dataset(dataset)

    @pytest.mark.parametrize("ratio", [50, 0, float("nan")])
    def test_a_limit_that_is_no_share_is_refused(self, ratio):
        with pytest.raises(ValueError, match="`max_edit_ratio` must be above 0 and at most 1"):
            inspect_dataset(pair(), max_edit_ratio=ratio)


class TestDiff:
    def test_pieces_are_cut_at_marks(self):
        original, edited = "one two three", "one 2 three"
        pieces = diff_pieces(original, edited, align_words(original, edited), spans=[[2, 7], [8, 13]])
        assert pieces == [
            Piece("keep", "on"),
            Piece("keep", "e ", True),
            Piece("delete", "two", True),
            Piece("insert", "2"),
            Piece("keep", " "),
            Piece("keep", "three", True),
        ]

    @pytest.mark.parametrize("kind", [None, "bpe", "wordpiece"])
    def test_both_real_texts_can_be_read_off(self, kind):
        tokenizer = kind and tiny.tokenizer(kind)
        for row in import_dataset("paradetox", shared_file("paradetox-8000.tsv")).dataset.select(range(0, 12000, 60)):
            original, edited = row["rejected"], row["chosen"]
            alignment = align_edits(original, edited, tokenizer) if kind else align_words(original, edited)
            pieces = diff_pieces(original, edited, alignment)
            assert "".join(piece.text for piece in pieces if piece.kind != "insert") == original
            assert "".join(piece.text for piece in pieces if piece.kind != "delete") == edited


HOSTILE = "</p></main><script>alert(1)</script><img src=x onerror='alert(2)' title=\"&\"> [bold]\x1b[31m\ud800"


class Page(HTMLParser):
    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # with the element that was opened last
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    def articles(self):
        return [attributes for tag, attributes in self.elements if tag == "article"]


class TestPage:
    def write(self, tmp_path, rows, **kwargs):
        kwargs = {"title": "pairs", **kwargs}
        path = write_page(inspect_dataset(Dataset.from_list(rows), max_edit_ratio=0.5), tmp_path / "p.html", **kwargs)
        return Page(path.read_text(encoding="utf-8"))

    def test_all_text_is_escaped(self, tmp_path):
        # Half surrogates cannot be in a data set, but in a title.
        hostile = HOSTILE[:-1]
        rows = [{"prompt": hostile, "chosen": f"a {hostile}", "rejected": f"{hostile} b", "rejected_spans": [[0, 20]]}]
        page = self.write(tmp_path, rows, title=HOSTILE)
        assert [tag for tag, _ in page.elements].count("script") == 1
        assert not {"img"} & {tag for tag, _ in page.elements}
        source = (tmp_path / "p.html").read_text(encoding="utf-8")
        assert "<script>alert" not in source and "\x1b" not in source
        assert "".join(text for _, text in page.texts).count("<script>alert(1)</script>") >= 4

    def test_only_its_own_script_may_run_and_nothing_is_fetched(self, tmp_path):
        page = self.write(tmp_path, ROWS)
        source = (tmp_path / "p.html").read_text(encoding="utf-8")
        [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
        script = source.split("<script>")[1].split("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        assert not re.search(r"https?:|url\(|@import|\bsrc=|\bhref=", source)

    def test_edits_are_told_by_elements_that_are_lined(self, tmp_path):
        row = {"prompt": "q", "chosen": "a d", "rejected": "a b c", "rejected_spans": [[2, 3]]}
        page = self.write(tmp_path, [row])
        source = (tmp_path / "p.html").read_text(encoding="utf-8")
        assert 'auto">a <del><mark>b</mark></del><del> c</del><ins>d</ins></p>' in source
        assert 'dir="auto">q</p>' in source
        assert "text-decoration: line-through" in source and "text-decoration: underline" in source
        assert page.articles() == [{"data-index": "0", "data-ratio": "0.4", "data-outcome": "kept"}]

    def test_rows_have_what_the_page_sorts_and_filters_by(self, tmp_path):
        page = self.write(tmp_path, ROWS)
        assert [float(article["data-ratio"]) for article in page.articles()] == [0.25, 0.0, 0.25, 1.0, 0.0, 0.2]
        options = [attributes["value"] for tag, attributes in page.elements if tag == "option"]
        assert options == ["index", "most", "least", "", "kept", "identical", "not_minimal"]
        assert any("All 6 rows." in text for _, text in page.texts)

    def test_a_sample_is_drawn_by_the_seed(self, tmp_path):
        samples = [
            [int(article["data-index"]) for article in self.write(tmp_path, ROWS * 5, limit=7, seed=seed).articles()]
            for seed in (0, 0, 1)
        ]
        assert samples[0] == samples[1] != samples[2]
        assert len(set(samples[0])) == 7 and samples[0] == sorted(samples[0])
        assert any("7 of 30 rows" in text for _, text in self.write(tmp_path, ROWS * 5, limit=7).texts)


class TestTerminal:
    def printed(self, rows, **kwargs):
        console = Console(file=io.StringIO(), width=200)
        print_inspection(inspect_dataset(Dataset.from_list(rows)), title="[bold]pairs", console=console, **kwargs)
        return console.file.getvalue()

    def test_figures_and_the_worst_rows(self):
        printed = self.printed(ROWS, worst=2)
        assert printed.startswith("[bold]pairs\n")
        assert re.search(r"^ rows +6 *$", printed, re.M) and re.search(r"^ median +0\.250 *$", printed, re.M)
        assert "Row 3, edit ratio 1.000, kept: [-h i-]{+f g+}\n" in printed
        assert "Row 0, edit ratio 0.250, kept: a b c [-e-]{+d+}\n" in printed
        assert "Row 2" not in printed

    def test_what_a_terminal_would_obey_is_shown(self):
        printed = self.printed([{"prompt": "", "chosen": "a\nb [bold]", "rejected": "a\n\x1b[31m\x9b1m [bold]"}])
        assert "a↵[-␛[31m�1m-]{+b+} [bold]" in printed
        assert "\x1b" not in printed and "\x9b" not in printed

    def test_long_stretches_are_shortened(self):
        kept = " ".join(f"w{i}" for i in range(200))
        printed = self.printed([{"prompt": "", "chosen": f"{kept} x", "rejected": f"{kept} y"}])
        assert "w0 w1 " in printed and " … " in printed and "w100" not in printed and "[-y-]{+x+}" in printed

    def test_identical_rows_alone(self):
        assert "median" not in self.printed([ROWS[1]])
        assert np.isclose(len(inspect_dataset(Dataset.from_list([ROWS[1]])).ratios), 0)


def test_the_command(tmp_path, capsys):
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "pairs"))
    tiny.word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    page = tmp_path / "pages" / "p.html"
    arguments = ["inspect", str(tmp_path / "pairs"), "--tokenizer", str(tmp_path / "tokenizer"), "--max-length", "5"]
    assert cli.main([*arguments, "--output", str(page), "--limit", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ too long +1 *$", printed, re.M) and "edit ratio, in words" in printed
    assert len(Page(page.read_text(encoding="utf-8")).articles()) == 2
