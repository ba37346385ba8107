"""Tokens with their scores: models whose scores are known by hand, and pages on which nothing gets through."""

import base64
import hashlib
import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from datasets import Dataset
from rich.console import Console

import tiny
from trl_tokenreward import ScoredRow, ScoredRows, ScoredText, TokenRewardModel, TokenScorer, score_dataset
from trl_tokenreward.cli import main as cli
from trl_tokenreward.reward_model.scoring import token_texts
from trl_tokenreward.reward_model.text_scores import scored_text
from trl_tokenreward.views.page import notebook_html
from trl_tokenreward.views.scored_text import Shown


pytestmark = pytest.mark.any_trl

EOS = 1
A, B, C, D = range(3, 7)  # of `tiny.word_tokenizer`
HOSTILE = "</p></main><script>alert(1)</script><img src=x onerror='alert(2)' title=\"&\"> [bold]\x1b[31m\ud800"


def reward_model(token_scores=None, prefix_scores=None, **kwargs):
    """A model that scores each token, and each prefix, by the last token alone."""
    model = TokenRewardModel.from_backbone(tiny.unigram_classifier(prefix_scores, **kwargs), copy=False)
    scores = token_scores or {}
    model.token_score.weight.data = torch.tensor([[scores.get(token, 0.0) / 4 for token in range(16)]])
    return model.eval()


def scorer(token_scores=None, prefix_scores=None, name="model", signal=None, **kwargs):
    token_scores = {A: 1.0, B: -2.0, EOS: 0.5} if token_scores is None else token_scores
    return TokenScorer(reward_model(token_scores, prefix_scores, **kwargs), tiny.word_tokenizer(), name, signal)


def close(expected):
    return pytest.approx(expected, abs=1e-5)


class TestTexts:
    @pytest.mark.parametrize("kind", ["bpe", "metaspace", "unigram"])
    def test_tokens_add_up_to_the_text(self, kind):
        corpus = [*tiny.CORPUS, "größer 🦊 naïve"]
        tokenizer = tiny.tokenizer(kind, corpus=corpus)
        prompt = tokenizer("the dog", add_special_tokens=False)["input_ids"]
        text = " no thanks, größer 🦊 again!"
        ids = tokenizer("the dog" + text, add_special_tokens=False)["input_ids"]
        assert ids[: len(prompt)] == prompt
        texts = token_texts(ids[len(prompt) :], tokenizer, context=prompt)
        assert len(texts) == len(ids) - len(prompt) and "".join(texts) == text

    def test_a_character_of_several_tokens_is_the_first_ones(self):
        tokenizer = tiny.tokenizer()
        ids = tokenizer("a🦊b", add_special_tokens=False)["input_ids"]
        assert token_texts(ids, tokenizer) == ["a", "🦊", "", "", "", "b"]
        # Bytes that never become a character wait for no more than one would have.
        lone = token_texts([ids[1]] * 9, tokenizer)
        assert len(lone) == 9 and set("".join(lone)) == {"�"} and lone[4] != ""

    def test_pieces_and_their_means(self):
        text = ScoredText(["", "a", "🦊", "", "", "b"], {"score": [1.0, 2.0, -1.0, None, -3.0, None]})
        pieces = text.pieces()
        assert pieces == [Shown("a", 0, 2), Shown("🦊", 2, 5), Shown("b", 5, 6)]
        assert [text.mean("score", piece) for piece in pieces] == [1.5, -2.0, None]
        assert ScoredText(["", ""], {"score": [1.0, 2.0]}).pieces() == []

    @pytest.mark.parametrize(
        ("series", "more", "message"),
        [
            ({"score": [1.0]}, {}, "`score` has 1 entries for 2 tokens"),
            ({"KL": [1.0, float("nan")]}, {}, "the KL of the token 'b' is nan; a token without a KL has None"),
            ({}, {"edit": "insert", "edited": [True]}, "`edited` has 1 entries for 2 tokens"),
        ],
    )
    def test_what_does_not_fit(self, series, more, message):
        with pytest.raises(ValueError, match=message):
            ScoredText(["a", "b"], series, **more)

    def test_of_score_texts(self):
        model, tokenizer = TokenRewardModel.from_backbone(tiny.causal_lm()), tiny.tokenizer()
        torch.nn.init.normal_(model.token_score.weight)
        [scores] = model.score_texts([" the 🦊 dog"], tokenizer)
        text = scored_text(scores)
        assert text.text == " the 🦊 dog" and text.series["score"] == scores.token_scores
        assert "🦊" in [piece.text.strip() for piece in text.pieces()]
        assert "🦊" in scores._repr_html_() and f"{scores.score:+.3f}" in scores._repr_html_()


class TestScoring:
    def test_texts(self):
        rows = score_dataset([{"prompt": "b c", "text": " a b"}, {"text": "d"}], scorer(prefix_scores={EOS: 7.0}))
        assert [row.name for row in rows] == ["Row 0", "Row 1"] and rows.title == "Token scores of model"
        [text] = rows[0].texts
        assert rows[0].prompt == "b c" and [token.strip() for token in text.tokens] == ["a", "b", "<eos>"]
        assert text.series["score"] == close([1.0, -2.0, 0.5]) and text.numbers == {"sequence score": close(7.0)}
        assert text.edit is None and text.name == ""
        assert rows[1].prompt == "" and rows[1].texts[0].series["score"] == close([0.0, 0.5])

    def test_differences_of_the_sequence_score(self):
        of_prefixes = scorer({}, {A: 1.0, B: 3.0, EOS: -1.0}, signal="sequence_score")
        rows = score_dataset([{"prompt": "b", "text": " a b"}, {"text": "b a"}], of_prefixes)
        assert rows[0].texts[0].series["score"] == close([1.0 - 3.0, 3.0 - 1.0, -1.0 - 3.0])
        # Without a prompt the first token makes all of its prefix's score.
        assert rows[1].texts[0].series["score"] == close([3.0, -2.0, -2.0])

    def test_pairs_have_both_sides_and_their_edits(self):
        row = {"prompt": "c", "chosen": " a d c", "rejected": " a b b c"}
        [scored] = score_dataset(Dataset.from_list([row]), scorer(prefix_scores={EOS: 2.0}))
        rejected, chosen = scored.texts
        assert (rejected.name, rejected.edit, chosen.name, chosen.edit) == ("rejected", "delete", "chosen", "insert")
        assert rejected.edited == [False, True, True, False, False]
        assert chosen.edited == [False, True, False, False]
        assert rejected.series["score"] == close([1.0, -2.0, -2.0, 0.0, 0.5])
        assert chosen.series["score"] == close([1.0, 0.0, 0.0, 0.5])

    def test_two_models_each_with_its_own_tokens(self):
        torch.manual_seed(0)
        other = TokenRewardModel.from_backbone(tiny.causal_lm())
        torch.nn.init.normal_(other.token_score.weight)
        scorers = scorer(), TokenScorer(other, tiny.tokenizer(), "model")
        row = {"prompt": "c", "chosen": " a d c", "rejected": " a b c"}
        [scored] = score_dataset([row], *scorers)
        assert [text.name for text in scored.texts] == [
            f"{side}, model ({n})" for side in ("rejected", "chosen") for n in (1, 2)
        ]
        assert scored.columns == 2
        mine, others = scored.texts[:2]
        assert mine.series["score"] == close([1.0, -2.0, 0.0, 0.5])
        assert others.text.removesuffix("<eos>") == " a b c"
        direct = other.score_texts([" a b c"], scorers[1].tokenizer, prompts=["c"])[0]
        assert others.series["score"][:-1] == close(direct.token_scores)
        assert others.numbers["sequence score"] == close(direct.score)

    def test_messages_and_completions(self):
        tokenizer = tiny.word_tokenizer()
        tokenizer.chat_template = "{% for m in messages %} {{ m['content'] }} .{% endfor %}"
        model = TokenScorer(reward_model({A: 1.0}), tokenizer, "model")
        prompt, completion = [{"role": "user", "content": "b"}], [{"role": "assistant", "content": "a"}]
        [row] = score_dataset([{"prompt": prompt, "completion": completion}], model)
        assert row.prompt == "b ." and [token.strip() for token in row.texts[0].tokens] == ["a", "."]

    def test_messages_with_tools_and_without_a_prompt_column(self):
        tokenizer = tiny.word_tokenizer()
        tokenizer.chat_template = (
            "{% if tools %}{{ tools[0].function.name }}{% endif %}"
            "{% for m in messages %} {{ m['content'] }} .{% endfor %}"
        )
        model = TokenScorer(reward_model({A: 1.0}), tokenizer, "model")
        text = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]
        [row] = score_dataset([{"text": text, "tools": [{"function": {"name": "c"}}]}], model)
        assert row.prompt == "c b ." and [token.strip() for token in row.texts[0].tokens] == ["a", "."]

    def test_the_transform_of_a_data_set_is_applied(self):
        rows = Dataset.from_list([{"word": "a"}]).with_transform(lambda batch: {"text": batch["word"]})
        assert score_dataset(rows, scorer())[0].texts[0].series["score"] == close([1.0, 0.5])

    def test_what_is_too_long_is_dropped_and_counted(self):
        rows = [{"text": "a b"}, {"text": "a b c d"}, {"text": "a"}, {"text": "b " * 200}]
        scored = score_dataset(rows, scorer(), max_length=4)
        assert [row.name for row in scored] == ["Row 0", "Row 2"]
        assert scored.dropped == ["2 of 4 rows dropped: they have more tokens than the models read: 1, 3."]
        assert [row.name for row in score_dataset(rows, scorer())] == ["Row 0", "Row 1", "Row 2"]  # 128 positions
        with pytest.raises(ValueError, match="All 2 rows have more tokens"):
            score_dataset(rows[1:4:2], scorer(), max_length=2)

    def test_streams_and_limits(self):
        rows = Dataset.from_list([{"text": "a"}] * 5)
        assert len(score_dataset(rows, scorer(), limit=2)) == 2
        assert len(score_dataset(rows.to_iterable_dataset(), scorer(), limit=3)) == 3

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "There are no rows to score"),
            ([{"text": "a"}, {"answer": "a"}], r"Row 1 has the columns \['answer'\]: .*`text` or `completion`"),
            ([{"text": "a", "completion": "a"}], "Row 0 has the columns"),
            ([{"text": 3}], "Row 0: `text` must be a text or messages, but is a int"),
            ([{"text": "a", "prompt": []}], "Row 0: `prompt` and `text` must both be texts"),
            ([{"chosen": "a", "rejected": None}], "Row 0 of the scored data set, column `rejected`"),
            (["a"], "Row 0: a row must be a dictionary of columns, but is 'a'"),
            ([{"chosen": 3, "rejected": "a"}], "Row 0 of the scored data set, column `chosen`: must be a text"),
            ([{"text": "a"}, {"text": "go\ud83d"}], "Row 1: `text` has half of a character"),
            ([{"completion": "a", "prompt": "\ud83d"}], "Row 0: `prompt` has half of a character"),
        ],
    )
    def test_malformed_rows(self, rows, message):
        with pytest.raises(ValueError, match=message):
            score_dataset(rows, scorer())

    def test_models_without_what_is_asked_for(self, tmp_path):
        tokenizer = tiny.word_tokenizer()
        with pytest.raises(ValueError, match="token head of x is untrained.*or score with `signal='sequence_score'`"):
            untrained = reward_model({})
            torch.nn.init.ones_(untrained.score.weight)
            TokenScorer(untrained, tokenizer, "x")
        with pytest.raises(TypeError, match="must be a TokenRewardModel.*LlamaForCausalLM"):
            TokenScorer(tiny.bigram_lm(), tokenizer)
        with pytest.raises(ValueError, match="the id 16, but model knows 16 tokens: this is not its tokenizer"):
            wide = TokenScorer(reward_model({A: 1.0}), tiny.word_tokenizer(words="abcdefghijkl.!"), "model")
            score_dataset([{"text": "a !"}], wide)
        with pytest.raises(ValueError, match="row 0: a token score is inf, not a finite number"):
            score_dataset([{"text": "a"}], scorer({A: float("inf")}))
        for name, model in {"policy": tiny.bigram_lm(), "classifier": tiny.unigram_classifier({A: 2.0})}.items():
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(
            ValueError, match=r"untrained: every token would score 0\. Train it with TokenRewardTrainer\."
        ):
            TokenScorer.from_pretrained(tmp_path / "policy")
        with pytest.raises(ValueError, match="no trained sequence head"):
            TokenScorer.from_pretrained(tmp_path / "policy", signal="sequence_score")
        with pytest.raises(ValueError, match="No model could be loaded from no-such-model-anywhere: "):
            TokenScorer.from_pretrained("no-such-model-anywhere")
        classifier = TokenScorer.from_pretrained(tmp_path / "classifier", signal="sequence_score")
        [row] = score_dataset([{"text": "a"}], classifier)
        assert row.texts[0].series["score"] == close([2.0, -2.0])


def one_row(*texts, prompt="q"):
    return ScoredRows("title", [ScoredRow("Row 0", prompt, texts)])


PAIR = one_row(
    ScoredText(
        [" a", " bad", " c"], {"score": [1.0, -4.0, 0.0]}, "rejected", {"sequence score": -1.5}, [0, 1, 0], "delete"
    ),
    ScoredText(
        [" a", " good", " c"], {"score": [1.0, 4.0, 0.0]}, "chosen", {"sequence score": 2.5}, [0, 1, 0], "insert"
    ),
)


class TestTerminal:
    def printed(self, rows, width=120, **kwargs):
        console = Console(file=io.StringIO(), width=width, **kwargs)
        console.print(rows)
        return console.file.getvalue()

    def test_a_pair_in_a_pipe(self):
        printed = self.printed(PAIR, width=80)
        assert (
            "rejected, sequence score -1.500\n" in printed
            and "  a [-bad-] c" in printed
            and "  a {+good+} c" in printed
        )
        assert 'lowest: "bad" -4.00, "c" +0.00, "a" +1.00; highest: "a" +1.00' in printed
        assert "\x1b" not in printed

    def test_colours_and_what_is_left_of_them(self):
        colours = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False, "_environ": {}}
        printed = self.printed(PAIR, **colours)
        assert "48;2;230;97;1m" in printed and "48;2;33;102;172m" in printed
        [bad] = re.findall(r"\x1b\[([\d;]*)mbad", printed)
        assert bad.split(";")[0] == "1" and "9" in bad.split(";")  # bold for low, struck through for deleted
        plain = self.printed(PAIR, **colours, no_color=True)
        assert "48;2" not in plain and re.search(r"\x1b\[1;9mbad", plain) and re.search(r"\x1b\[4mgood", plain)

    def test_side_by_side_where_there_is_room(self):
        assert re.search(r"rejected, .*chosen, ", self.printed(PAIR, width=120))
        assert not re.search(r"rejected, .*chosen, ", self.printed(PAIR, width=80))
        assert max(map(len, self.printed(PAIR, width=20).splitlines())) <= 20

    def test_what_a_terminal_would_obey_is_shown(self):
        printed = self.printed(one_row(ScoredText([HOSTILE, "\n", "\t", " "], {"score": [1.0] * 4}), prompt=HOSTILE))
        assert "\x1b" not in printed and printed.count("␛[31m�") >= 3 and "[bold]" in printed
        assert "↵\n" in printed and "⇥" in printed and "␣" in printed
        # Names come from columns and files.
        text = ScoredText(["a"], {HOSTILE: [1.0]}, HOSTILE, {HOSTILE: 1.0})
        printed = self.printed(ScoredRows(HOSTILE, [ScoredRow(HOSTILE, "q", [text])], [HOSTILE]), width=1000)
        assert "\x1b" not in printed and "\ud800" not in printed and printed.count("␛[31m�") == 6


class Page(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.elements, self.texts, self.source = [], [], source
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, attribute=None):
        return [attrs for name, attrs in self.elements if name == tag and (attribute is None or attribute in attrs)]


def page(rows, tmp_path, **kwargs):
    return Page(rows.write_page(tmp_path / "made" / "page.html", **kwargs).read_text(encoding="utf-8"))


class TestPage:
    def test_tokens_have_their_numbers_and_marks(self, tmp_path):
        source = page(PAIR, tmp_path).source
        # The 98th percentile of 1, 4, 0, 1, 4, 0 is 4; strongest is an opacity of .6; low is -2 or less.
        low = '<span title="-4.000" class="low" style="background:rgba(230, 97, 1, 0.600)" data-v="-4"><del>bad</del></span>'
        high = '<span title="+4.000" style="background:rgba(33, 102, 172, 0.600)" data-v="4"><ins>good</ins></span>'
        weak = '<span title="+1.000" style="background:rgba(33, 102, 172, 0.150)" data-v="1">a</span>'
        for token in (low, high, weak):
            assert token in source
        assert "&minus;4.00 bad" in source and "good &ge; +4.00" in source and "&minus;2.00</b>" in source
        assert "sequence score -1.500" in source and '<p class="prompt" dir="auto">q</p>' in source
        assert ".low { border-bottom: 2px dotted" in source and "text-decoration: line-through" in source

    def test_several_tokens_of_one_character_and_several_series(self, tmp_path):
        text = ScoredText(["🦊", "", " b"], {"score": [1.0, -3.0, 2.0], "KL": [0.5, None, 0.25]})
        parsed = page(one_row(text), tmp_path)
        titles = [(span["title"], span["data-v"]) for span in parsed.all("span", "data-v")]
        assert titles == [("score +1.000, -3.000\nKL +0.500", "-1 0.5"), ("score +2.000\nKL +0.250", "2 0.25")]
        series = json.loads(parsed.all("form")[0]["data-series"])
        assert [(each["name"], each["limit"]) for each in series] == [("score", 3.0), ("KL", 0.5)]

    def test_nothing_gets_through(self, tmp_path):
        text = ScoredText([HOSTILE], {HOSTILE: [1.0]}, HOSTILE, {HOSTILE: 1.0}, [True], "delete")
        rows = ScoredRows(HOSTILE, [ScoredRow(HOSTILE, HOSTILE, [text], step) for step in (1, 2)], [HOSTILE])
        parsed = page(rows, tmp_path)
        assert len(parsed.all("script")) == 1 and not parsed.all("img")
        assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
        assert not re.search("[\x00-\x08\x0b-\x1f\ud800]", parsed.source)
        assert sum(text.count("<script>alert(1)</script>") for text in parsed.texts) >= 10
        notebook = Page(notebook_html(rows))
        assert not notebook.all("script") and not notebook.all("img") and "\x1b" not in notebook.source

    def test_only_its_own_script_may_run_and_nothing_is_fetched(self, tmp_path):
        parsed = page(PAIR, tmp_path)
        [policy] = [meta["content"] for meta in parsed.all("meta", "http-equiv")]
        script = parsed.source.split("<script>")[1].split("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        assert not re.search(r"https?:|url\(|@import|\bsrc=|\bhref=", parsed.source)

    def test_white_space_and_direction(self, tmp_path):
        text = ScoredText(["שלום", "\n\n", "\t", "  ", " a\n"], {"score": [1.0] * 5})
        source = page(one_row(text), tmp_path).source
        shown = [re.sub("<[^>]*>", "", span) for span in re.findall(r"<span title[^>]*>.*?</span>", source, re.DOTALL)]
        assert shown == ["שלום", "↵\n↵\n", "⇥\t", "␣␣", "a↵\n"]
        assert '<p class="text" dir="auto">' in source and "> <" in source  # a word's blank stays plain

    def test_of_too_many_rows_a_sample(self, tmp_path):
        text = [ScoredText(["a"], {"score": [1.0]})]
        rows = ScoredRows("many", [ScoredRow(f"Row {i}", "", text) for i in range(40)])
        samples = [re.findall(r"<h2>Row (\d+)", page(rows, tmp_path, limit=7, seed=s).source) for s in (0, 0, 1)]
        assert samples[0] == samples[1] != samples[2] and len(set(samples[0])) == 7
        assert "7 of 40 rows, drawn at random with the seed 0." in page(rows, tmp_path, limit=7).texts
        steps = ScoredRows("run", [ScoredRow("x", "", text, step) for step in range(0, 100, 10) for _ in range(4)])
        parsed = page(steps, tmp_path, limit=20)
        assert [int(article["data-step"]) for article in parsed.all("article")][::4] == [0, 20, 40, 70, 90]
        assert "5 of 10 logged steps, at even distances." in parsed.texts
        with pytest.raises(ValueError, match="no scored texts"):
            page(ScoredRows("none", []), tmp_path)


class TestNotebook:
    def test_it_needs_no_script_and_changes_nothing_else(self):
        source = PAIR._repr_html_()
        parsed = Page(source)
        assert not parsed.all("script") and '<span title="-4.000" class="low"' in source and "data-v" not in source
        rules = re.sub(r"@media[^{]*\{", "", source.split("<style>")[1].split("</style>")[0])
        selectors = [selector.strip(" }\n") for selector in re.findall(r"([^{}]*)\{", rules)]
        assert len(selectors) > 8 and all(selector.startswith(".scored") for selector in selectors)

    def test_it_says_what_is_not_shown(self):
        rows = ScoredRows("many", [ScoredRow("x", "", [ScoredText(["a"], {"score": [1.0]})])] * 25)
        assert "20 of 25 rows are shown" in rows._repr_html_()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, scores in {"one": {A: 1.0, B: -2.0}, "two": {A: -1.0}}.items():
        reward_model(scores).save_pretrained(folder / name)
        tiny.word_tokenizer().save_pretrained(folder / name)
    return folder


class TestCommand:
    def test_texts_of_two_models(self, model_folder, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO("b a"))
        arguments = ["score", str(model_folder / "one"), "--other", str(model_folder / "two"), "--text", "a b", "-"]
        assert cli.main([*arguments, "--prompt", "c ", "--output", str(tmp_path / "p.html")]) == 0
        printed = capsys.readouterr().out
        assert 'lowest: "b" -2.00' in printed and 'lowest: "a" -1.00' in printed and "Row 1" in printed
        assert len(Page((tmp_path / "p.html").read_text(encoding="utf-8")).all("p", "class")) == 6

    def test_a_file(self, model_folder, tmp_path, capsys):
        (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nc ,a,b\nc ,a,a b\nc ,b,a\n")
        arguments = ["score", str(model_folder / "one"), "--file", str(tmp_path / "pairs.csv"), "--limit", "2"]
        assert cli.main([*arguments, "--show", "1"]) == 0
        printed = capsys.readouterr().out
        assert "[-b-]<eos>" in printed.replace(" ", "") and "Row 1" not in printed
        assert "The first 1 of 2 rows. --show prints more" in printed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--text", "a"], "Name the MODEL to score with."),
            (["{one}", "--text", "a", "--limit", "2"], "--limit has no effect with --text."),
            (["{one}", "--file", "{tmp}/x.jsonl", "--prompt", "a"], "--prompt has no effect with --file."),
            (["{one}", "--run", "{tmp}"], "MODEL has no effect with --run."),
            (["--run", "{tmp}"], "train with `log_completions=True`"),
            (["{one}", "--text", "a", "--other-tokenizer", "x"], "--other-tokenizer has no effect without --other."),
            (["{one}", "--file", "{tmp}/x.jsonl"], "Row 0 has the columns ['answer']"),
        ],
    )
    def test_what_it_refuses(self, arguments, message, model_folder, tmp_path, capsys):
        (tmp_path / "x.jsonl").write_text('{"answer": "a"}\n')
        names = {"one": model_folder / "one", "tmp": tmp_path}
        assert cli.main(["score", *(argument.format(**names) for argument in arguments)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("trl-tokenreward score: error: ") and message in error


def test_rows_are_ordered_by_how_far_models_differ(tmp_path):
    """Models of token scores alone, such as implicit rewards, have no sequence scores."""
    pairs = [((0.0, 2.0), (1.0, 1.0)), ((5.0, None), (-5.0, -5.0)), ((1.0, 1.0), (0.0, 0.0))]
    rows = [ScoredRow("", "", [ScoredText(["a", "b"], {"score": score}) for score in pair]) for pair in pairs]
    made = page(ScoredRows("both", rows), tmp_path)
    assert [float(attrs["data-spread"]) for attrs in made.all("article")] == [0, -10, -1]


def test_the_page_in_a_browser(tmp_path, open_page):
    texts = [
        ScoredText([" a", " b"], {"score": [2.0, -4.0], "KL": [-1.0, 1.0]}),
        ScoredText([" c"], {"score": [1.0], "KL": [0.0]}),
    ]
    rows = [ScoredRow(f"step {step}", prompt, texts, step) for step in (4, 8) for prompt in ("p", f"q{step}")]
    path = ScoredRows("run", rows).write_page(tmp_path / "run.html")
    view = open_page(path.resolve().as_uri(), color_scheme="dark")

    def shown():
        return view.locator("article:not([hidden]) h2").all_text_contents()

    assert shown() == ["step 8", "step 8"]
    view.locator("input[name=step]").focus()
    view.keyboard.press("ArrowLeft")
    assert shown() == ["step 4", "step 4"]
    view.select_option("select[name=prompt]", label="2 × p")
    assert shown() == ["step 4", "step 8"]

    view.locator("article:not([hidden]) .text").first.focus()
    view.keyboard.press("ArrowRight")
    view.keyboard.press("ArrowRight")
    assert view.locator(".tip").inner_text().split("\n") == ["b", "score -4.000", "KL +1.000"]
    view.keyboard.press("Escape")
    assert view.locator(".tip").is_hidden()
    token = view.locator("article:not([hidden]) [data-v]").first
    token.hover()
    assert "score +2.000" in view.locator(".tip").inner_text()

    orange = "230, 97, 1"
    assert orange not in token.get_attribute("style")
    view.select_option("select[name=series]", label="KL")
    assert orange in token.get_attribute("style") and "low" in token.get_attribute("class")
    assert "likelier now" in view.locator(".legend").inner_text()
    view.select_option("select[name=scale]", "own")
    assert "its mean" in view.locator(".legend").inner_text()
    view.select_option("select[name=prompt]", "")
    view.select_option("select[name=order]", "lowest")
    assert shown() == ["step 4"] * 2
