import io
import re
import struct
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from report import (
    Arm,
    GeneratedAnswer,
    HeldOutPair,
    TableRow,
    Token,
    Value,
    require_matplotlib,
    write_report,
)
from trl_tokenreward.views.colours import BAD_RGB, GOOD_RGB, STRONGEST, score_colour


pytestmark = pytest.mark.any_trl


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror='alert(2)' title=\"&\"> [bold]$\\frac"

TABLE = [
    TableRow("token accuracy", {"reward model": 0.98}),
    TableRow("win rate", {"terminal": Value(0.6214, 0.5512, 0.6931), "dense": Value(0.75, 0.7, 0.8)}),
    TableRow("mean length", {"terminal": 21.26, "dense": 20.0}, digits=1),
]
CURVES = {
    "terminal": {"judge": [(0, 5.0), (1, 6.0), (2, 6.5)], "KL": [(1, 0.5), (2, 1.5)]},
    "dense": {"judge": [(0, 5.0), (1, 7.0), (2, 8.0)]},
}
EXAMPLES = [
    HeldOutPair(
        prompt="\n\nHuman: What colour is a lemon?\n\nAssistant:",
        rejected=[Token(" It is", 0.25), Token(" blue", -2.0, True), Token(".", 0.0)],
        chosen=[Token(" It is", 0.5), Token(" yellow", 1.5, True), Token(".", None)],
    ),
    GeneratedAnswer(
        prompt="\n\nHuman: And a lime?\n\nAssistant:",
        arms=[Arm("start", [Token(" Blue", -1.0)], 2.5), Arm("dense", [Token(" Green", 1.0)], 10.0)],
    ),
]


class Page(HTMLParser):
    """Elements with their attributes, in order, and the text of the body."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.in_style = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.in_style = tag == "style"

    def handle_endtag(self, tag):
        self.in_style = False

    def handle_data(self, data):
        if not self.in_style:
            self.text += data


def make_report(folder, **changed) -> tuple[str, str]:
    """The page's source and what was printed."""
    arguments = {
        "title": "A title",
        "table": TABLE,
        "curves": CURVES,
        "examples": EXAMPLES,
        "command": "make demo",
        "notes": ["A note."],
    }
    console = Console(file=io.StringIO(), width=120)
    path = write_report(folder, **{**arguments, **changed}, console=console)
    return path.read_text(encoding="utf-8"), console.file.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "made" / "on the way"
    return folder, *make_report(folder)


def test_page_holds_all_that_was_given(report):
    text = Page(report[1]).text
    for part in (
        "A title",
        "A note.",
        "make demo",
        "token accuracy",
        "0.980",
        "0.621",
        "[0.551, 0.693]",
        "21.3",
        "Human: What colour is a lemon?",
        "rejected",
        "chosen",
        " It is blue.",
        " It is yellow.",
        "judge 2.50",
        "judge 10.00",
    ):
        assert part in text


def test_tokens_carry_their_score_and_their_edit_mark(report):
    assert re.search(r'<span title="-2.000"[^>]*><del>blue</del></span>', report[1])
    assert re.search(r'<span title="\+1.500"[^>]*><ins>yellow</ins></span>', report[1])
    assert re.search(r'<span title="\+0.250"[^>]*>It is</span>', report[1])
    # Without a score there is nothing to colour and nothing to say.
    assert re.search(r"</span>\.</p>", report[1])


def test_legend_names_the_scale_and_the_marks(report):
    legend = re.search(r'<div class="legend">.*?</div>', report[1], re.DOTALL).group()
    # Seven scores: magnitudes 0, .25, .5, 1, 1, 1.5, 2; the 98th percentile of so few is the greatest.
    assert "&minus;2.00 bad" in legend and "good &ge; +2.00" in legend
    assert "linear-gradient" in legend
    for part in ("<del>edited out</del>", "<ins>edited in</ins>", "prompt"):
        assert part in legend


def test_one_outlier_does_not_wash_out_the_rest(tmp_path):
    tokens = [Token(" word", 1.0)] * 199 + [Token(" outlier", -50.0)]
    source, _ = make_report(tmp_path, examples=[GeneratedAnswer("prompt", [Arm("start", tokens)])])
    assert "&minus;1.00 bad" in source
    assert score_colour(-50.0, 1.0) in source


def test_page_is_self_contained(report):
    page = Page(report[1])
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        for name, value in attributes.items():
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                assert (name, tag) == ("src", "img") and value.startswith("data:image/png;base64,")
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]*", "", report[1]))
    policy = next(attributes for tag, attributes in page.elements if attributes.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'")


def test_curves_are_a_file_and_one_image_for_each_metric(report):
    png = (report[0] / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 800 and height > 300
    images = [attributes["alt"] for tag, attributes in Page(report[1]).elements if tag == "img"]
    assert images == ["Learning curve: judge", "Learning curve: KL"]


def test_printed_table_is_the_pages_table(report):
    printed = report[2]
    for part in ("A title", "token accuracy", "0.980", "0.621", "[0.551, 0.693]", "21.3", "20.0"):
        assert part in printed
    order = [printed.index(column) for column in ("reward", "terminal", "dense")]
    assert order == sorted(order)


def test_hostile_texts_stay_texts(tmp_path):
    source, printed = make_report(
        tmp_path,
        title=HOSTILE,
        table=[TableRow(HOSTILE, {HOSTILE: 1.0})],
        curves={HOSTILE: {HOSTILE: [(0, 1.0)]}},
        examples=[
            HeldOutPair(HOSTILE, [Token(HOSTILE, 1.0, True)], [Token(HOSTILE, None)]),
            GeneratedAnswer(HOSTILE, [Arm(HOSTILE, [Token(HOSTILE, -1.0)], 1.0)]),
        ],
        command=HOSTILE,
        notes=[HOSTILE],
    )
    page = Page(source)
    # One image, of the one learning curve; nothing of the texts has become an element or an attribute.
    assert [tag for tag, _ in page.elements if tag in {"script", "img"}] == ["img"]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    # title twice, note, command, two table heads, two prompts, three answers, an arm's name
    assert page.text.count(HOSTILE) == 12
    assert "[bold]" in printed


def test_control_characters_and_half_surrogates_become_visible(tmp_path):
    source, _ = make_report(tmp_path, examples=[GeneratedAnswer("a\x00b", [Arm("x", [Token("\ud83d\x1b\r\n", 0.5)])])])
    assert "a\N{SYMBOL FOR NULL}b" in source
    assert "\N{REPLACEMENT CHARACTER}\N{SYMBOL FOR ESCAPE}↵\n" in source
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", source)


def test_colour_is_monotone_in_the_score():
    def place_on_scale(score: float) -> float:
        *rgb, opacity = re.fullmatch(r"rgba\((\d+), (\d+), (\d+), ([\d.]+)\)", score_colour(score, 2.0)).groups()
        sign = {GOOD_RGB: 1, BAD_RGB: -1}[tuple(map(int, rgb))]
        return sign * float(opacity)

    scores = [-9.0, -2.0, -1.5, -0.5, -0.01, 0.0, 0.01, 0.5, 1.5, 2.0, 9.0]
    places = [place_on_scale(score) for score in scores]
    assert places == sorted(places)
    assert len(set(places[1:-1])) == len(places) - 2
    assert places[0] == places[1] == -STRONGEST and places[-1] == places[-2] == STRONGEST
    assert places[5] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_on_the_strongest_colours(report, scheme):
    # WCAG 2: contrast = (lighter + .05) / (darker + .05) of the relative luminances; 4.5 is its AA level for text.
    def luminance(rgb: tuple[float, float, float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def colour(name: str) -> tuple[int, int, int]:
        values = re.findall(rf"--{name}: #(\w\w)(\w\w)(\w\w)", report[1])
        return tuple(int(value, 16) for value in values[scheme == "dark"])

    page = colour("page")
    for ink, opacity in (("ink", STRONGEST), ("muted", 0.0)):
        for rgb in (GOOD_RGB, BAD_RGB):
            background = tuple(opacity * c + (1 - opacity) * p for c, p in zip(rgb, page, strict=True))
            dark, light = sorted((luminance(colour(ink)), luminance(background)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("examples", [[], [GeneratedAnswer("prompt", [Arm("start", [Token("text", None)])])]])
def test_report_without_curves_or_scores(tmp_path, examples):
    source, _ = make_report(tmp_path, curves={}, examples=examples, notes=[])
    assert not (tmp_path / "curves.png").exists()
    assert "Learning curves" not in source
    assert ("text" in Page(source).text) == bool(examples)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused_and_named(tmp_path, score):
    with pytest.raises(ValueError, match="score of the token ' lemon' is (nan|inf).*'the prompt'"):
        make_report(tmp_path, examples=[HeldOutPair("the prompt", [], [Token(" lemon", score)])])


def test_missing_matplotlib_is_said_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"trl-tokenreward\[demo\]"):
        require_matplotlib()
    with pytest.raises(ImportError, match=r"trl-tokenreward\[demo\]"):
        make_report(tmp_path)
    assert make_report(tmp_path, curves={})[0]
