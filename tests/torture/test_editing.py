"""`edit` under kills, full disks and endpoints that misbehave, and rows of all shapes. Long: see CONTRIBUTING.md."""

import json
import random
import shutil
import time
from collections import Counter
from functools import partial

import pytest
from datasets import Dataset, IterableDataset, load_from_disk

import tiny
from editing_work import answers, edit_rows
from fake_endpoint import FAULTS, mixed
from torturing import STRANGE_TEXTS, Child, small_disk, strange_row, strange_value
from trl_tokenreward import TokenRewardModel, TokenScorer, align_edits, score_dataset
from trl_tokenreward.data.importers import import_dataset
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.editing.edit_dataset import edit_dataset
from trl_tokenreward.editing.editors import Editor
from trl_tokenreward.editing.tasks import read_tasks
from trl_tokenreward.inspection.report import inspect_dataset


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]


def good_for_bad(text, number=0):
    return f"<edited>{text.split('|')[2].replace('bad', 'good')}</edited>"


def logged(output):
    """The rows that the log has, whole lines only."""
    path = output / "log.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["row"] for line in lines[1:]]


def check_whole(output, rows):
    dataset = load_from_disk(str(output))
    assert dataset["rejected"][:] == answers(rows)
    assert dataset["chosen"][:] == [answer.replace("bad", "good") for answer in answers(rows)]
    assert Counter(logged(output)) == Counter(range(rows))
    assert "| edited |" in (output / "README.md").read_text() and (output / "dropped.jsonl").read_text() == ""


def test_killed_at_random_moments(serve, tmp_path):
    def slow(text, number):
        time.sleep(0.01)
        return good_for_bad(text)

    server, chance, rows, kills = serve(slow), random.Random(0), 300, 0
    while True:
        before = logged(tmp_path)
        child = Child(edit_rows, server.url, str(tmp_path), rows)
        child.process.join(chance.uniform(0.05, 1.0 + kills / 10))  # a slow machine needs longer to start
        if child.process.exitcode is not None:
            assert child.result() is None
            break
        child.kill()
        kills += 1
        assert logged(tmp_path)[: len(before)] == before  # nothing that was logged is lost
    check_whole(tmp_path, rows)
    # Lost are the requests that were under way, three to a kill.
    assert kills >= 5 and len(server.bodies) <= rows + 3 * kills


def test_killed_while_the_data_set_is_written(serve, tmp_path):
    server, chance, rows = serve(good_for_bad), random.Random(1), 200
    edit_rows(server.url, tmp_path / "done", rows)
    kills = Counter()
    for round in range(20):
        output = tmp_path / str(round)
        shutil.copytree(tmp_path / "done", output)  # with a data set that is written again
        child = Child(edit_rows, server.url, str(output), rows)
        while not (output / ".new").exists() and child.process.is_alive():
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.0, 0.01))
        child.kill()
        try:
            assert len(load_from_disk(str(output))) == rows
            kills["whole"] += 1
        except FileNotFoundError:
            kills["none"] += 1
        edit_rows(server.url, output, rows)
        check_whole(output, rows)
    assert len(server.bodies) == rows and kills.total() == 20


def test_files_that_may_not_grow(serve, tmp_path):
    server, chance, rows, errors = serve(good_for_bad), random.Random(2), 100, Counter()
    for round in range(15):
        output = tmp_path / str(round)
        before = len(server.bodies)
        child = Child(
            edit_rows, server.url, str(output), rows, most_bytes=chance.choice((0, 100, 3000, 20_000, 90_000))
        )
        outcome = child.result()
        if outcome is not None:
            name, message, trace = outcome
            assert name == "OSError" and "File too large" in message, trace
            errors["error"] += 1
        edit_rows(server.url, output, rows)
        check_whole(output, rows)
        assert len(server.bodies) - before <= rows + 3
    assert errors["error"] > 3


@pytest.mark.parametrize("kilobytes", [4, 16, 32, 64, 96, 128])
def test_a_full_disk(serve, tmp_path, kilobytes):
    server, rows = serve(good_for_bad), 100
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        outcome = Child(edit_rows, server.url, str(disk / "out"), rows).result()
        if outcome is not None:
            name, message, trace = outcome
            assert name == "OSError" and "No space left" in message, trace
        done = logged(disk / "out")
        assert len(server.bodies) - len(done) <= 3  # paid for and lost
        if (disk / "out").exists():
            shutil.copytree(disk / "out", tmp_path / "larger")
    edit_rows(server.url, tmp_path / "larger", rows)
    check_whole(tmp_path / "larger", rows)
    assert len(server.bodies) <= rows + 3


def test_an_endpoint_that_misbehaves_every_other_time(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("trl_tokenreward.utils.chat_endpoint._MOST_BYTES", 2**21)
    rows, start = 60, time.monotonic()
    with mixed([fault for fault, _ in FAULTS.values()], good_for_bad, random.Random(3)) as url:
        for _ in range(20):
            edit_rows(url, tmp_path, rows, timeout=0.5, retries=3, concurrency=8)
            reasons = {row["row"]: row["reason"] for row in map(json.loads, (tmp_path / "dropped.jsonl").open())}
            assert set(reasons.values()) <= {"request_failed"}
            if not reasons:
                break
    dataset = load_from_disk(str(tmp_path))
    assert dataset["chosen"][:] == [answer.replace("bad", "good") for answer in answers(rows)]
    assert time.monotonic() - start < 300


class Strange(Editor):
    """An editor that answers anything."""

    def __init__(self, chance):
        super().__init__({})
        self.chance = chance

    def __call__(self, requests, attempt):
        marks = ("<edited>", "</edited>", "", "")
        return ["".join(self.chance.choice((*STRANGE_TEXTS, *marks)) for _ in range(4)) for _ in requests]


def test_answers_of_all_shapes(tmp_path):
    dataset = Dataset.from_list([{"prompt": "p", "chosen": "c", "rejected": answer} for answer in answers(300)])
    result = edit_dataset(dataset, Strange(random.Random(4)), tmp_path, progress=False)
    assert result.counts["not_unicode"] > 0 and sum(result.counts.values()) == 300
    assert len(Dataset.from_json(str(tmp_path / "dropped.jsonl"))) == 300 - result.counts["edited"]
    result = edit_dataset(dataset, Strange(random.Random(5)), tmp_path, progress=False)  # and it goes on


def outcome_of(call, row):
    """`"ok"`, or `"refused"` after an error that names the row, or says that none is left."""
    try:
        call()
        return "ok"
    except ValueError as error:
        allowed = ("Row 0", "No pair is left", "All 1 rows", "no rows left", "cannot be read", "has no rows")
        assert any(part in str(error) for part in allowed), (row, error)
        return "refused"


def table(row):
    """The row as a table, or `None` if Arrow holds no such row."""
    try:
        return Dataset.from_list([row])
    except (ValueError, TypeError, OverflowError, ArithmeticError):  # pyarrow's errors are among them
        return None


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_all_shapes(seed, tmp_path):
    chance, tokenizer = random.Random(seed), tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    model = TokenRewardModel.from_backbone(tiny.sequence_classifier())
    model.token_score.weight.data.fill_(0.01)
    scorer = TokenScorer(model, tokenizer)
    counts = Counter()
    names = {name: name for name in ("prompt", "chosen", "rejected")}
    path = tmp_path / "rows.jsonl"
    for round in range(150):
        row = strange_row(chance)
        stream, dataset = IterableDataset.from_generator(lambda row=row: iter([row])), table(row)
        path.write_text(json.dumps(row) + "\n")
        calls = {
            "prepare": lambda stream: list(prepare_dataset(stream, tokenizer)[0]),
            "score": lambda row: score_dataset([row], scorer),
            "tasks": read_tasks,
            "inspect": lambda dataset: inspect_dataset(dataset, tokenizer),
            "import": lambda path: import_dataset("columns", path, columns=names),
        }
        given = {"prepare": stream, "score": row, "tasks": dataset, "inspect": dataset, "import": path}
        for kind, call in calls.items():
            if given[kind] is not None and (kind != "import" or round % 20 == 0):
                counts[kind, outcome_of(partial(call, given[kind]), row)] += 1
        texts = [strange_value(chance) for _ in range(2)]
        try:
            align_edits(*texts, tokenizer)
        except (TypeError, ValueError) as error:
            assert "must be a str" in str(error) or "half of a character" in str(error)
    for kind in ("prepare", "score", "tasks", "inspect"):
        assert counts[kind, "ok"] > 0 and counts[kind, "refused"] > 0, counts
