"""The annotation server under kills, full disks and requests of all shapes. Long: see CONTRIBUTING.md."""

import json
import random
import threading
import time
from collections import Counter

import pytest

from annotating import opened, pairs, serving
from annotation_cases import ANSWERS, ask
from annotation_work import ROWS, serve_rows, wait_for_port
from torturing import Child, small_disk, strange_value
from trl_tokenreward import read_annotations


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]

NAMES = ("ada", "bob", "cy")


class Annotator(threading.Thread):
    """Edits one row after the other until the server is gone. What the server has confirmed is in `saved` and
    `drafts`."""

    def __init__(self, url, name, saved, drafts):
        super().__init__(daemon=True)
        self.url, self.name, self.saved, self.drafts = url, name, saved, drafts
        self.refused, self.failed = 0, 0

    def act(self, action, **body):
        status, answer, _ = ask(f"{self.url}/api/{action}", {"annotator": self.name, "tab": "t", **body})
        self.failed += status == 500
        assert status in (200, 500), answer
        return answer if status == 200 else None

    def run(self):
        try:
            while self.failed < 20 and (shown := self.act("show", row=None) or {"row": -1})["row"] is not None:
                row = shown["row"]
                if row < 0:
                    continue
                text = shown["text"].replace("bad", "good")
                if self.act("check", row=row, text=text + " so", take=False):
                    self.drafts[row, self.name] = text + " so"
                if self.act("save", row=row, text=text + " far"):
                    self.saved[row, self.name] = text + " far"
        except (OSError, json.JSONDecodeError):
            pass  # the server is gone, or the answer was cut off


def work(url, saved, drafts):
    people = [Annotator(url, name, saved, drafts) for name in NAMES]
    for person in people:
        person.start()
    return people


def check_kept(output, saved, drafts):
    """What was confirmed is there: decisions in the log, what was typed as the text of the row."""
    decisions = {(d["row"], d["annotator"]): d["edited"] for d in read_annotations(output).decisions}
    for key, text in saved.items():
        assert decisions[key] == text
    dataset = pairs(*(f"the answer number {i} is very bad indeed" for i in range(ROWS)))
    with opened(dataset, output) as store:
        for (row, name), text in drafts.items():
            if (row, name) not in decisions:  # whose text is one that was sent after it
                assert store.show(name, "new", row)["text"] == text
    return decisions


def test_killed_at_random_moments(tmp_path):
    chance, saved, drafts, kills = random.Random(0), {}, {}, 0
    while len(saved) < ROWS * 0.9 and kills < 60:
        port_file = tmp_path / f"port-{kills}"
        child = Child(serve_rows, str(tmp_path / "out"), str(port_file))
        people = work(wait_for_port(port_file, child), saved, drafts)
        time.sleep(chance.uniform(0.1, 0.6))
        child.kill()
        kills += 1
        for person in people:
            person.join(20)
        check_kept(tmp_path / "out", saved, drafts)
    assert kills >= 5 and len(saved) > ROWS / 2, (kills, len(saved))


def test_killed_while_it_starts(tmp_path):
    chance, output = random.Random(1), tmp_path / "out"
    for round in range(25):
        child = Child(serve_rows, str(output), str(tmp_path / f"port-{round}"))
        child.process.join(chance.uniform(0.0, 0.3))
        child.kill()
    check_kept(output, {}, {}) if (output / "annotations.jsonl").exists() else None
    child = Child(serve_rows, str(output), str(tmp_path / "port"))
    assert ask(f"{wait_for_port(tmp_path / 'port', child)}/api/about", {})[0] == 200
    child.kill()


@pytest.mark.parametrize("kilobytes", [8, 32, 64])
def test_a_full_disk(tmp_path, kilobytes):
    saved, drafts = {}, {}
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        child = Child(serve_rows, str(disk / "out"), str(tmp_path / "port"))
        url = wait_for_port(tmp_path / "port", child)
        people = work(url, saved, drafts)
        for person in people:
            person.join(60)
        assert sum(person.failed for person in people) > 0 and ask(f"{url}/api/about", {})[0] == 200
        child.kill()
        decisions = {(d["row"], d["annotator"]): d["edited"] for d in read_annotations(disk / "out").decisions}
        assert decisions == saved  # neither less nor more than was confirmed


def test_requests_of_all_shapes(tmp_path):
    chance, statuses = random.Random(2), Counter()
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        fields = ("annotator", "tab", "row", "text", "take", "reason", "detail", "password")
        good = {"annotator": "ada", "tab": "t", "row": 0, "text": "a", "take": False, "reason": "unclear", "detail": ""}
        store.show("ada", "t")
        for _ in range(3000):
            action = chance.choice(("about", "show", "check", "save", "skip", "leave", "login", "nothing"))
            body = {
                name: strange_value(chance) if chance.random() < 0.2 else good.get(name)
                for name in fields
                if chance.random() < (0.95 if name in good else 0.05)
            }
            if chance.random() < 0.7:  # what the action takes
                takes = {"about": (), "show": ("tab", "row"), "leave": (), "check": ("tab", "row", "text", "take")}
                takes |= {"save": ("tab", "row", "text"), "skip": ("tab", "row", "reason", "detail", "text")}
                names = ("annotator", *takes.get(action, ())) if action != "about" else ()
                body = {name: body.get(name, good.get(name)) for name in names}
            data = json.dumps(body).encode()
            if chance.random() < 0.1:
                data = bytes(chance.randrange(256) for _ in range(chance.randrange(50)))
            status, _, _ = ask(f"{url}/api/{action}", headers={"Content-Type": "application/json"}, data=data)
            statuses[status] += 1
        assert set(statuses) <= {200, 400, 404, 409, 413, 422}, statuses
        assert statuses[200] > 100 and statuses[400] > 100 and statuses[422] > 10
        assert ask(f"{url}/api/about", {})[0] == 200
    read_annotations(tmp_path)
