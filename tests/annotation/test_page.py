"""The page on which people edit, in Chromium."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from annotating import opened, pairs, serving
from trl_tokenreward import read_annotations
from trl_tokenreward.annotation.store import AnnotationStore
from trl_tokenreward.editing.checks import EditChecks


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)").expect

ANSWERS = [f"the answer number {i} is very bad indeed" for i in range(4)]
GOOD = [answer.replace("bad", "good") for answer in ANSWERS]


@pytest.fixture
def site(tmp_path):
    """The address of a page with four rows, and its store."""
    with opened(pairs(*ANSWERS), tmp_path / "out", checks=EditChecks(0.4), criteria="be nice") as store:
        with serving(store) as url:
            yield url, store


def enter(page, name):
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.locator("#editor")).to_be_focused()


def replace(page, text):
    """As a person would, so that undoing works."""
    page.locator("#editor").press("Control+a")
    page.keyboard.type(text)


def gate(page):
    return page.locator("#gate-text")


def decisions(store):
    found = read_annotations(store.output).decisions
    return {(d["row"], d["annotator"]): (d["reason"], d["edited"]) for d in found}


def test_typing_shows_the_edit_and_the_gate(site, open_page):
    url, store = site
    page = open_page(url)
    enter(page, "Ada")
    expect(page.locator("#prompt")).to_have_text("p0")
    expect(page.locator("#preferred")).to_have_text("better 0")
    expect(page.locator("#criteria")).to_have_text("be nice")
    expect(page.locator("#editor")).to_have_value(ANSWERS[0])
    expect(gate(page)).to_have_text("No word was changed.")
    replace(page, GOOD[0])
    expect(gate(page)).to_have_text("Small enough to save.")
    expect(page.locator("#diff del")).to_have_text("bad")
    expect(page.locator("#diff ins")).to_have_text("good")
    expect(page.locator("#meter-ratio dd")).to_have_text("13% of 40%")  # 2 of 16 words
    expect(page.locator("#meter-hunks dd")).to_have_text("1 of 16")
    expect(page.locator("#meter-length dd")).to_have_text("+3% of ±50%")
    replace(page, "no words of that answer are kept")
    expect(gate(page)).to_have_text(re.compile("% of the words were changed; at most 40% may be."))
    expect(page.locator("#gate")).to_have_class("refused")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#gate")).to_have_class("refused blink")
    assert decisions(store) == {} and page.locator("#editor").input_value() == "no words of that answer are kept"
    page.keyboard.press("Alt+r")
    expect(page.locator("#editor")).to_have_value(ANSWERS[0])
    expect(gate(page)).to_have_text("No word was changed.")
    page.keyboard.press("Control+z")
    expect(page.locator("#editor")).to_have_value("no words of that answer are kept")


def test_all_of_it_by_keyboard(site, open_page):
    url, store = site
    page = open_page(url)
    enter(page, "Ada")
    replace(page, GOOD[0])
    page.keyboard.press("Control+Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[1])
    expect(page.locator("#editor")).to_be_focused()
    expect(page.locator("#progress")).to_have_text("1 of 4 done · 1 by you · 3 left for you")
    page.keyboard.press("Alt+s")
    expect(page.locator("#skip-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#editor")).to_be_focused()
    page.keyboard.press("Alt+s")
    page.keyboard.press("Enter")
    expect(page.locator("#skip-problem")).to_have_text("Choose a reason.")
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    expect(page.locator("#skip-problem")).to_have_text("Say what the reason is.")
    page.keyboard.type("5 of them")  # digits are text there
    page.keyboard.press("Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[2])
    page.keyboard.press("Alt+s")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[3])
    page.keyboard.press("Alt+PageUp")
    expect(page.locator("#row-state")).to_have_text("row 2 · skipped: it takes more than a minimal edit")
    page.keyboard.press("Alt+PageUp")
    expect(page.locator("#row-state")).to_have_text("row 1 · skipped: another reason (5 of them)")
    page.keyboard.press("Alt+PageUp")
    expect(page.locator("#editor")).to_have_value(GOOD[0])
    replace(page, GOOD[0].replace("very", "rather"))
    expect(page.locator("#row-state")).to_have_text("row 0 · saved before · changed since")
    page.keyboard.press("Alt+PageDown")
    expect(page.locator("#row-state")).to_contain_text("row 1")
    page.keyboard.press("Alt+PageUp")
    expect(page.locator("#editor")).to_have_value(GOOD[0].replace("very", "rather"))
    page.keyboard.press("Control+Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[3])
    replace(page, GOOD[3])
    page.keyboard.press("Control+Enter")
    expect(page.locator("#finished")).to_contain_text("All rows are done. Thank you!")
    page.keyboard.press("Enter")  # the button to look through them has the focus
    expect(page.locator("#editor")).to_have_value(GOOD[3])
    page.keyboard.press("Alt+h")
    expect(page.locator("#help-dialog")).to_be_visible()
    assert decisions(store) == {
        (0, "Ada"): ("edited", GOOD[0].replace("very", "rather")),
        (1, "Ada"): ("other", None),
        (2, "Ada"): ("rewrite", None),
        (3, "Ada"): ("edited", GOOD[3]),
    }
    assert [d["detail"] for d in read_annotations(store.output).decisions] == ["", "5 of them", "", ""]


def test_a_reload_in_mid_typing_loses_nothing(site, open_page):
    url, store = site
    page = open_page(url)
    enter(page, "Ada")
    replace(page, "the answer number 0 is half")
    page.reload()  # at once, before anything was asked of the server
    expect(page.locator("#editor")).to_have_value("the answer number 0 is half")
    expect(gate(page)).to_have_text("Small enough to save.")
    expect(page.locator("#row-state")).to_have_text("row 0 · draft kept")
    expect(page.locator("#editor")).to_be_focused()
    # What the server has is not this browser's alone.
    other = open_page(url)
    enter(other, "Ada")
    expect(other.locator("#editor")).to_have_value("the answer number 0 is half")


def test_what_was_not_sent_is_not_shown_in_another_work_on_the_same_rows(tmp_path, open_page, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    with opened(pairs(*ANSWERS), tmp_path / "one") as store, serving(store) as url:
        page = open_page(url)
        enter(page, "Ada")
        monkeypatch.setattr(store, "check", fail)
        replace(page, "the answer number 0 is half")
        expect(gate(page)).to_contain_text("could not be written down")
    port = int(url.rpartition(":")[2])  # an origin, to a browser, with a store of its own
    with opened(pairs(*ANSWERS), tmp_path / "two") as store, serving(store, port=port) as url:
        page.reload()
        expect(page.locator("#editor")).to_have_value(ANSWERS[0])


def test_two_tabs_do_not_overwrite_each_other(site, open_page):
    url, store = site
    one = open_page(url)
    enter(one, "Ada")
    replace(one, "the answer number 0 is typed first")
    expect(one.locator("#row-state")).to_have_text("row 0 · draft kept")
    two = open_page(url, context=one.context)
    expect(two.locator("#editor")).to_have_value("the answer number 0 is typed first")
    replace(two, "the answer number 0 is typed second")
    expect(two.locator("#row-state")).to_have_text("row 0 · draft kept")
    replace(one, "the answer number 0 is typed third")
    expect(one.locator("#banner")).to_contain_text("open in another tab of yours")
    one.locator("#banner-load").click()
    expect(one.locator("#editor")).to_have_value("the answer number 0 is typed second")
    replace(two, "the answer number 0 is very good")
    expect(two.locator("#banner")).to_be_visible()
    two.locator("#banner-take").click()
    expect(two.locator("#banner")).to_be_hidden()
    two.keyboard.press("Control+Enter")
    expect(two.locator("#editor")).to_have_value(ANSWERS[1])
    assert decisions(store) == {(0, "Ada"): ("edited", "the answer number 0 is very good")}
    one.locator("#editor").press("Control+Enter")
    expect(one.locator("#banner")).to_be_visible()
    assert len(decisions(store)) == 1


def test_two_annotators_have_rows_and_progress_of_their_own(site, open_page):
    url, store = site
    ada, bob = open_page(url), open_page(url)
    enter(ada, "Ada")
    enter(bob, "Bob")
    expect(bob.locator("#editor")).to_have_value(ANSWERS[1])
    for page, row, count in ((ada, 0, 1), (ada, 2, 2), (bob, 1, 1)):
        replace(page, GOOD[row])
        page.keyboard.press("Control+Enter")
        expect(page.locator("#progress")).to_contain_text(f"{count} by you")
    expect(bob.locator("#progress")).to_have_text("3 of 4 done · 1 by you · 0 left for you")
    expect(bob.locator("#finished-text")).to_have_text("The rows that are not done yet are with other annotators.")
    expect(ada.locator("#progress")).to_have_text("2 of 4 done · 2 by you · 1 left for you")
    ada.locator("#name-button").click()
    ada.locator("#name").fill("a|b")
    ada.keyboard.press("Enter")
    expect(ada.locator("#name-problem")).to_contain_text("A name has 1 to 40")
    ada.locator("#name").fill("Cy")
    ada.keyboard.press("Enter")
    expect(ada.locator("#name-button-name")).to_have_text("Cy")
    expect(ada.locator("#editor")).to_have_value(ANSWERS[3])  # Ada has left it
    ada.reload()
    expect(ada.locator("#name-button-name")).to_have_text("Cy")
    assert set(decisions(store)) == {(0, "Ada"), (2, "Ada"), (1, "Bob")}


def test_texts_do_nothing_and_are_shown_as_they_are(tmp_path, open_page):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)><b>is bad</b>"
    rows = pairs(evil, "هذا جواب سيئ جدا 🙂 وهذا كل شيء", "line\n\n  of bad \x1b[31m text " * 200)
    rows = rows.map(lambda row: {"prompt": f"\n\nHuman: {evil}\n\nAssistant:", "chosen": evil})
    with opened(rows, tmp_path / "out", criteria=evil) as store, serving(store) as url:
        page = open_page(url)
        enter(page, "Ada")
        for part in ("#criteria", "#preferred", "#diff"):
            expect(page.locator(part)).to_have_text(evil)
        expect(page.locator("#prompt .text")).to_have_text(evil)
        expect(page.locator("#prompt b")).to_have_text("Human")
        assert page.locator("main img, main script").count() == 0
        replace(page, evil.replace("bad", "<img src=y onerror=alert(3)>"))
        expect(page.locator("#diff ins")).to_have_text("<img src=y onerror=alert(3)>")
        page.keyboard.press("Alt+s")
        page.keyboard.press("5")
        page.keyboard.type(evil)
        page.keyboard.press("Enter")
        expect(page.locator("#editor")).to_have_value("هذا جواب سيئ جدا 🙂 وهذا كل شيء")
        page.keyboard.press("Alt+PageUp")
        expect(page.locator("#row-state")).to_contain_text(evil)
        page.keyboard.press("Alt+PageDown")
        expect(page.locator("#editor")).to_have_value(re.compile("هذا"))
        assert page.locator("#editor").evaluate("field => getComputedStyle(field).direction") == "rtl"
        replace(page, "هذا جواب جيد جدا 🙂 وهذا كل شيء")
        expect(page.locator("#diff ins")).to_have_text("جيد")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#editor")).to_have_value(re.compile("^line\n\n  of bad"))
        expect(page.locator("#diff")).to_contain_text("␛[31m")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert decisions(store)[1, "Ada"] == ("edited", "هذا جواب جيد جدا 🙂 وهذا كل شيء")


def test_the_password_is_asked_for(tmp_path, open_page):
    with opened(pairs(*ANSWERS), tmp_path / "out") as store, serving(store, "correct horse") as url:
        page = open_page(url)
        expect(page.locator("#password")).to_be_focused()
        page.keyboard.type("wrong horse")
        page.keyboard.press("Enter")
        expect(page.locator("#problem")).to_have_text("That is not the password.")
        page.keyboard.type("correct horse")
        page.keyboard.press("Enter")
        enter(page, "Ada")
        assert page.evaluate("document.cookie") == ""
        replace(page, GOOD[0])
        page.context.clear_cookies()  # as after a restart of the server
        page.keyboard.press("Control+Enter")
        expect(page.locator("#password")).to_be_focused()
        page.keyboard.type("correct horse")
        page.keyboard.press("Enter")
        expect(page.locator("#editor")).to_have_value(GOOD[0])


def test_the_page_fits_a_narrow_screen_in_the_dark(site, open_page):
    url, store = site
    page = open_page(url, viewport={"width": 380, "height": 700}, color_scheme="dark")
    enter(page, "Ada")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    expect(page.locator("#save")).to_be_in_viewport()


class Command:
    """`trl-tokenreward annotate` in a process of its own."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-u", "-m", "trl_tokenreward", "annotate", "pairs.jsonl", "out", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        environment.pop("TRL_TOKENREWARD_PASSWORD", None)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.lines = []
        while not self.lines or "http" not in self.lines[-1]:
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line.strip())
        self.url = re.search(r"http://\S+", self.lines[-1])[0]

    def end(self, how):
        self.process.send_signal(how)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


@pytest.fixture
def start(tmp_path):
    servers = []

    def start(*options):
        servers.append(Command(tmp_path, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


def test_a_killed_server_has_lost_nothing(tmp_path, open_page, start):
    pairs(*ANSWERS).to_json(tmp_path / "pairs.jsonl")
    server = start("--port", "0", "--limit", "3")
    assert server.lines[0] == "3 of 3 rows can be annotated." and server.url.startswith("http://127.0.0.1:")
    port = server.url.rpartition(":")[2]
    page = open_page(server.url)
    enter(page, "Ada")
    replace(page, GOOD[0])
    page.keyboard.press("Control+Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[1])
    server.end(signal.SIGKILL)
    replace(page, GOOD[1])
    expect(gate(page)).to_contain_text("The server does not answer. What you typed is kept in this browser.")
    server = start("--port", port, "--limit", "3")
    expect(gate(page)).to_have_text("Small enough to save.")  # it has tried again by itself
    page.keyboard.press("Control+Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[2])
    expect(page.locator("#progress")).to_contain_text("2 of 3 done")
    status, output = server.end(signal.SIGINT)
    assert (status, output) == (0, "2 of 3: Ada edited 12% of row 1\n")
    store = AnnotationStore(pairs(*ANSWERS), tmp_path / "out", limit=3)
    store.close()
    assert decisions(store) == {(0, "Ada"): ("edited", GOOD[0]), (1, "Ada"): ("edited", GOOD[1])}


def test_what_is_typed_while_the_server_is_slow_is_kept(site, open_page, monkeypatch):
    url, store = site
    check = store.check
    monkeypatch.setattr(store, "check", lambda *args, **kwargs: time.sleep(0.3) or check(*args, **kwargs))
    page = open_page(url)
    enter(page, "Ada")
    replace(page, "the answer number 0 is slow")
    page.wait_for_timeout(250)  # a check is under way
    page.keyboard.type("ly bad indeed")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#editor")).to_have_value(ANSWERS[1])
    assert decisions(store) == {(0, "Ada"): ("edited", "the answer number 0 is slowly bad indeed")}
    page.wait_for_timeout(400)
    page.keyboard.press("Alt+PageUp")  # no check that came late has made a draft of what was typed before
    expect(page.locator("#editor")).to_have_value("the answer number 0 is slowly bad indeed")
    expect(page.locator("#row-state")).to_have_text("row 0 · saved before")
