"""Editors and the data sets that they make, on a local HTTP server that answers as it is told to, on models in this
process, and on `transformers serve`."""

import argparse
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset, load_from_disk
from transformers.utils.import_utils import is_serve_available

import tiny
from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer
from trl_tokenreward.cli import edit as command
from trl_tokenreward.editing.checks import EditChecks
from trl_tokenreward.editing.edit_dataset import edit_dataset
from trl_tokenreward.editing.editors import EndpointEditor, LocalEditor
from trl_tokenreward.utils.chat_endpoint import EndpointError
from trl_tokenreward.utils.loading import load_split


pytestmark = pytest.mark.any_trl

TEMPLATE = "{criteria}|{prompt}|{answer}|<edited></edited>"


def good_for_bad(text, number):
    return f"I will.\n<edited>\n{text.split('|')[2].strip().replace('bad', 'good')}</edited>"


@pytest.fixture
def server(serve):
    return serve(good_for_bad)


def make_editor(server, **kwargs):
    return EndpointEditor(server.url, "editor-1", **{"backoff": 0.001, "retries": 1, **kwargs})


def pairs(*answers):
    rows = [{"prompt": f"p{i}", "chosen": "other", "rejected": answer} for i, answer in enumerate(answers)]
    return Dataset.from_list(rows)


def edit(server, dataset, output, editor=None, **kwargs):
    kwargs = {"template": TEMPLATE, "criteria": "be nice", "progress": False, **kwargs}
    return edit_dataset(dataset, editor or make_editor(server), output, **kwargs)


def dropped(output):
    return [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]


def texts(server):
    return [body["messages"][0]["content"] for body in server.bodies]


def test_the_edits_train_a_reward_model(server, tmp_path):
    dataset = pairs(" This movie was bad. ", "all fine here", "{prompt} is bad\nthe dog", "the lazy bad dog")
    editor = make_editor(server, prices=(2.0, 10.0), concurrency=1)
    result = edit(server, dataset, tmp_path / "out", editor, retries=0, about={"dataset": "mine"})
    assert result.counts == {"edited": 3, "identical": 1}
    assert texts(server)[0] == "be nice|p0| This movie was bad. |<edited></edited>"
    assert result.cost == pytest.approx(4 * (100 * 2 + 7 * 10) / 1e6) and result.usage.requests == 4
    saved = load_from_disk(str(tmp_path / "out"))
    assert saved.to_list() == result.dataset.to_list() == load_split(tmp_path / "out", "train").to_list()
    assert saved.to_list()[:2] == [  # the white space around an answer is no part of the edit
        {"prompt": "p0", "chosen": " This movie was good. ", "rejected": " This movie was bad. ", "row": 0},
        {"prompt": "p2", "chosen": "{prompt} is good\nthe dog", "rejected": "{prompt} is bad\nthe dog", "row": 2},
    ]
    [row] = dropped(tmp_path / "out")
    assert (row["row"], row["reason"], row["prompt"], row["rejected"]) == (1, "identical", "p1", "all fine here")
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("| edited | 3 |", "| identical | 1 |", "cost 0.0011", "| dataset | `mine` |", "editor-1", "be nice"):
        assert part in card, part
    assert f"````\n{TEMPLATE}\n````" in card
    # Of a folder on the Hub, `load_dataset` takes what the card names; of a local one it refuses what `save_to_disk`
    # wrote.
    shutil.copytree(tmp_path / "out", tmp_path / "hub", ignore=shutil.ignore_patterns("state.json"))
    loaded = load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == saved.to_list()

    args = TokenRewardConfig(
        str(tmp_path / "model"), use_cpu=True, bf16=False, report_to="none", max_steps=2, per_device_train_batch_size=2
    )
    trainer = TokenRewardTrainer(tiny.causal_lm(), args, train_dataset=saved, processing_class=tiny.tokenizer())
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.dropped["train"]["kept"] == 3


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        ("I would rather not.", "unparsed", "Nothing stands between"),
        ("<edited>cut off", "unparsed", "Nothing stands between"),
        ("<edited>one  two bad four five</edited>", "identical", "No word"),
        ("<edited></edited>", "length", "from 21 to 0"),
        ("<edited>one two bad four five and more</edited>", "length", "from 21 to 30 characters; at most 30%"),
        ("<edited>ONE TWO bad FOUR five</edited>", "edit_ratio", "60% of the words were changed; at most 45%"),
        ("<edited>ONE two bad four FIVE</edited>", "hunks", "in 2 places; at most 1"),
        ("<edited>one two worse four five</edited>", "not_better", "it scores -1, the original 0"),
        ("<edited>one two odd four five</edited>", "not_scored", "too odd"),
        ((400, "too long"), "request_failed", "status 400: 'too long'"),
        ("<edited>one two go\ud83d four five</edited>", "not_unicode", r"has half of a character, '\ud83d'"),
        ("<edited>" * 100_000 + "one two bad four five", "unparsed", "Nothing stands between"),
        ("<edited>between <edited> one two good four five</edited>, and </edited>", "edited", ""),
        ("<edited>x</edited> no: <edited>one two good four five</edited>", "edited", ""),
    ],
    ids=str,
)
def test_each_check_has_its_reason(server, tmp_path, answer, reason, detail):
    def score(prompts, answers):
        assert prompts == ["p0", "p0"]
        if "odd" in answers[0]:
            raise ValueError("too odd")
        return [float("good" in answer) - float("worse" in answer) for answer in answers]

    server.respond = lambda text, number: answer
    checks = EditChecks(max_edit_ratio=0.45, max_hunks=1, max_length_change=0.3, score=score)
    result = edit(server, pairs("one two bad four five"), tmp_path, checks=checks, retries=1)
    assert result.counts == {"edited": int(reason == "edited"), reason: 1}
    if reason == "edited":
        assert result.dataset[0]["chosen"] == "one two good four five" and dropped(tmp_path) == []
    else:
        [row] = dropped(tmp_path)
        assert row["reason"] == reason and detail in row["detail"]
        assert row["answer"] == (None if reason == "request_failed" else answer.replace("\ud83d", "\ufffd"))
        assert load_from_disk(str(tmp_path)).column_names == ["prompt", "chosen", "rejected", "row"]
    assert len(server.bodies) == (1 if reason in ("edited", "request_failed", "not_scored") else 2)
    # What failed for a reason of its own is asked for again by the next run; what was refused is not.
    asked = len(server.bodies)
    edit(server, pairs("one two bad four five"), tmp_path, checks=checks, retries=1)
    assert len(server.bodies) == asked + (reason in ("request_failed", "not_scored"))


def test_a_score_that_is_no_list_ends_the_run(server, tmp_path):
    for name, score in (("dict", lambda *_: {2.0: "", 1.0: ""}), ("NoneType", lambda *_: None)):
        with pytest.raises(TypeError, match=f"`score` returned a {name}, where a list of 2 entries is due"):
            edit(server, pairs("so bad"), tmp_path / name, checks=EditChecks(1.0, score=score))


def test_an_output_that_half_a_character_had_blocked_goes_on(server, tmp_path):
    dataset = pairs("it is bad", "so bad")
    edit(server, dataset, tmp_path)
    log = tmp_path / "log.jsonl"
    head, first, *others = log.read_text().splitlines()
    record = json.loads(first)
    record["edited"] = record["edited"].replace("good", "go\ud83d")  # as earlier versions logged it
    log.write_text("\n".join([head, json.dumps(record), *others]) + "\n")
    result = edit(server, dataset, tmp_path)
    assert result.counts == {"edited": 2} and result.dataset["chosen"][:] == ["it is good", "so good"]
    assert len(server.bodies) == 3


def test_a_long_answer_with_many_marks_or_words_is_read_in_no_time(server, tmp_path):
    server.respond = lambda text, number: "<edited>" * 200_000 + ("word " * 500_000) + "</edited>"
    start = time.monotonic()
    assert edit(server, pairs("it is bad " * 1000), tmp_path, retries=0).counts == {"edited": 0, "length": 1}
    assert time.monotonic() - start < 3


def test_one_run_at_a_time_writes_to_an_output(server, tmp_path):
    def second(text, number):
        with pytest.raises(ValueError, match=f"Another process, or another call in this one, has {tmp_path} open"):
            edit(server, pairs("it is bad"), tmp_path)
        return good_for_bad(text, number)

    server.respond = second
    assert edit(server, pairs("it is bad"), tmp_path).counts == {"edited": 1}
    assert len(server.bodies) == 1 and len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert edit(server, pairs("it is bad"), tmp_path).counts == {"edited": 1}  # the lock is gone with the run


def test_what_is_no_log_of_edits_is_named_by_its_line(server, tmp_path):
    edit(server, pairs("it is bad"), tmp_path)
    log = tmp_path / "log.jsonl"
    head, row = log.read_text().splitlines()
    for lines, number in (((head, head, row), 2), ((row, head), 1), ((head, "[" * 100_000, row), 2), ((head, "{}"), 2)):
        log.write_text("\n".join(lines) + "\n")
        with pytest.raises(ValueError, match=f"Line {number} of the log .*log.jsonl is no row: delete it"):
            edit(server, pairs("it is bad"), tmp_path)


def test_nothing_is_asked_for_after_the_log_has_failed(server, tmp_path, monkeypatch):
    def fail(self, *lines):
        if "settings" not in lines[0]:
            time.sleep(0.05)
            raise OSError("disk full")

    monkeypatch.setattr("trl_tokenreward.editing.log.EditLog.append", fail)
    editor = make_editor(server, concurrency=3)
    with pytest.raises(OSError, match="disk full"):
        edit(server, pairs(*(f"{i} is bad" for i in range(20))), tmp_path, editor)
    assert len(server.bodies) <= 3


def test_a_data_set_is_the_earlier_one_until_the_new_one_is_whole(server, tmp_path, monkeypatch):
    answers = ["it is bad", "so bad", "bad it is"]
    edit(server, pairs(*answers), tmp_path, limit=2)
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            edit(server, pairs(*answers), tmp_path)
    assert len(load_from_disk(str(tmp_path))) == 2
    with monkeypatch.context() as patch:
        patch.setattr("trl_tokenreward.editing.output.os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            edit(server, pairs(*answers), tmp_path)
    with pytest.raises(FileNotFoundError):  # and no half of one
        load_from_disk(str(tmp_path))
    edit(server, pairs(*answers), tmp_path)
    assert len(load_from_disk(str(tmp_path))) == 3 and len(server.bodies) == 3
    assert not (tmp_path / ".new").exists()


def test_a_refused_edit_is_asked_for_again_with_the_reason_and_hotter(server, tmp_path):
    server.respond = lambda text, number: good_for_bad(text, number) if number == 3 else "<edited>{}</edited>"
    result = edit(server, pairs("so bad it is"), tmp_path, retries=3)
    assert result.counts == {"edited": 1} and len(server.bodies) == 3
    assert [body["temperature"] for body in server.bodies] == [0.0, 0.7, 0.7]
    first, *others = texts(server)
    assert all(other.startswith(first) and "The length went from 12 to 2 characters" in other for other in others)
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])
    assert record["attempts"] == 3 and record["used"]["requests"] == 3


def test_it_ends_at_once_where_it_is_interrupted(server, tmp_path):
    def interrupt(text, number):
        if number == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return good_for_bad(text, number) if number == 1 else (503, "busy")

    server.respond, start = interrupt, time.monotonic()
    editor = make_editor(server, backoff=20.0, retries=5, concurrency=2)
    dataset = pairs(*["it is bad"] * 9)
    with pytest.raises(KeyboardInterrupt):
        edit(server, dataset, tmp_path, editor)
    assert time.monotonic() - start < 5 and len(server.bodies) == 3
    server.respond = good_for_bad
    assert edit(server, dataset, tmp_path, editor).counts == {"edited": 9}
    assert len(server.bodies) == 3 + 8


def test_formats(server, tmp_path):
    def user(text):
        return {"role": "user", "content": text}

    def model(text):
        return {"role": "assistant", "content": text}

    rows = [
        {"prompt": [user("hi")], "chosen": [model("ok")], "rejected": [model("it is bad")]},
        {"prompt": [user("hi")], "chosen": [model("ok")], "rejected": [model("bad"), user("why?"), model("bad")]},
        {"prompt": [user("hi")], "chosen": [model("ok")], "rejected": [model(" ")]},
    ]
    result = edit(server, Dataset.from_list(rows), tmp_path / "messages")
    assert result.counts == {"edited": 1, "several_turns": 1, "empty": 1}
    kept = {"prompt": [user("hi")], "chosen": [model("it is good")], "rejected": [model("it is bad")], "row": 0}
    assert result.dataset.to_list() == [kept] and texts(server) == ["be nice|user: hi|it is bad|<edited></edited>"]

    call = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "it"}}}
    more = [
        {"prompt": [user("hi")], "chosen": [model("ok")], "rejected": [{**model("it is bad"), **fields}]}
        for fields in (
            {"tool_calls": None},
            {"tool_calls": [call]},
            {"reasoning_content": "Is it bad?"},
            {"content": None},
        )
    ]
    result = edit(server, Dataset.from_list(more), tmp_path / "more")
    assert result.counts == {"edited": 1, "more_than_text": 2, "empty": 1}
    assert result.dataset[0]["chosen"][0] == {**model("it is good"), "tool_calls": None, "reasoning_content": None}
    server.bodies.clear()

    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows[:2]]
    assert edit(server, Dataset.from_list(implicit), tmp_path / "implicit").dataset.to_list() == [kept]

    start = "\n\nHuman: hi\n\nAssistant:"
    dialogues = [
        {"chosen": f"{start} ok", "rejected": f"{start} it is bad"},
        {"chosen": f"{start} ok", "rejected": f"{start} bad\n\nHuman: why?\n\nAssistant: bad"},
    ]
    result = edit(server, Dataset.from_list(dialogues), tmp_path / "dialogues")
    assert result.counts == {"edited": 1, "several_turns": 1}
    assert result.dataset.to_list() == [{"prompt": start, "chosen": " it is good", "rejected": " it is bad", "row": 0}]
    result = edit(server, pairs("it is bad").remove_columns("prompt"), tmp_path / "no_prompt")
    assert result.dataset[0] == {"prompt": "", "chosen": "it is good", "rejected": "it is bad", "row": 0}


def edit_forty(url, output):
    dataset = pairs(*(f"answer {i} is bad" for i in range(40)))
    edit_dataset(dataset, EndpointEditor(url, "m", concurrency=3), output, template=TEMPLATE, progress=False)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(server, tmp_path):
    def slow(text, number):
        time.sleep(0.03)
        return good_for_bad(text, number)

    server.respond = slow
    log = tmp_path / "log.jsonl"
    code = "import sys, test_editors; test_editors.edit_forty(*sys.argv[1:])"
    here = Path(__file__)
    folders = os.pathsep.join(map(str, (here.parent, here.parents[1] / "support", here.parents[2])))
    environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < 11:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    time.sleep(0.1)  # the server finishes what it was asked

    written = {json.loads(line)["row"] for line in log.read_text().splitlines()[1:]}
    assert 10 <= len(written) < 40
    with log.open("a") as file:  # as if it had been killed within a line
        file.write('{"row": 39, "hash": "')
    before = len(server.bodies)
    assert before - len(written) <= 3  # lost: what was in flight
    edit_forty(server.url, tmp_path)
    asked = Counter(int(text.split("|")[2].split()[1]) for text in texts(server)[before:])
    assert set(asked) == set(range(40)) - written and set(asked.values()) == {1}
    assert load_from_disk(str(tmp_path))["rejected"][:] == [f"answer {i} is bad" for i in range(40)]
    edit_forty(server.url, tmp_path)  # nothing is left to ask
    assert len(server.bodies) == before + len(asked)


def test_a_changed_row_is_edited_again_and_more_rows_may_follow(server, tmp_path):
    answers = ["a is bad", "b is bad", "c is bad"]
    assert edit(server, pairs(*answers), tmp_path, limit=2).counts == {"edited": 2}
    answers[0] = "A is bad"
    editor = make_editor(server, prices=(1.0, 0.0))
    result = edit(server, pairs(*answers), tmp_path, editor)
    assert sorted(text.split("|")[2] for text in texts(server)) == ["A is bad", *sorted(["a is bad", *answers[1:]])]
    assert result.dataset["chosen"][:] == ["A is good", "b is good", "c is good"]
    assert editor.usage.requests == 2 and result.usage.requests == 4 and result.cost == pytest.approx(400 / 1e6)
    with pytest.raises(ValueError, match=r"begun with other settings \(checks, criteria\)"):
        edit(server, pairs(*answers), tmp_path, criteria="be rude", checks=EditChecks(max_hunks=3))


def test_concurrency_and_trouble_that_is_not_the_rows(server, tmp_path):
    def slow(text, number):
        time.sleep(0.05)
        return (503, "down") if "bad" not in text else good_for_bad(text, number)

    server.respond = slow
    editor = make_editor(server, concurrency=3, retries=0)
    assert edit(server, pairs(*[f"{i} is bad" for i in range(9)]), tmp_path / "a", editor).counts == {"edited": 9}
    assert server.most_at_once == 3
    editor = make_editor(server, concurrency=4, retries=0)
    with pytest.raises(EndpointError, match="20 rows failed one after the other.*status 503"):
        edit(server, pairs(*[f"{i} is" for i in range(200)]), tmp_path / "b", editor)
    assert editor.usage.requests < 40
    server.respond = lambda text, number: (401, "who?")
    with pytest.raises(EndpointError, match="status 401"):
        edit(server, pairs(*[f"{i} is" for i in range(200)]), tmp_path / "c", make_editor(server, concurrency=2))


def test_rows_that_always_fail_do_not_end_the_runs_after(server, tmp_path):
    """Thirty of sixty are too long for the endpoint: the first run ends, and so does one that repeats it."""
    texts = [f"{i} is {'long' if i % 2 else 'bad'}" for i in range(60)]
    server.respond = lambda text, number: (400, "too long") if "long" in text else good_for_bad(text, number)
    first = edit(server, pairs(*texts), tmp_path, make_editor(server, retries=0))
    assert first.counts == {"edited": 30, "request_failed": 30}
    asked = len(server.bodies)
    again = edit(server, pairs(*texts, "61 is bad"), tmp_path, make_editor(server, retries=0))
    assert again.counts == {"edited": 31, "request_failed": 30} and len(server.bodies) == asked + 31
    assert "61 is bad" in json.dumps(server.bodies[asked : asked + 8])  # before those that failed


def test_what_has_no_columns_or_no_answer(server, tmp_path):
    rows = Dataset.from_list([{"prompt": "p", "completion": text} for text in ("is bad", None)])
    assert edit(server, rows, tmp_path / "a").counts == {"edited": 1, "empty": 1}
    with pytest.raises(ValueError, match="has a transform"):
        edit(server, rows.with_transform(lambda batch: batch), tmp_path / "b")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"template": "{prompt} {answer} <edited>"}, r"`template` lacks \{criteria\}, </edited>"),
        ({"criteria": " \n"}, "`criteria` is empty"),
        ({"criteria": "be \ud83d"}, "`criteria` has half of a character"),
        ({"template": TEMPLATE + "\ud83d"}, "`template` has half of a character"),
        ({"about": {"dataset": "\udcff.jsonl"}}, "`about` has half of a character"),
        ({"retries": -1}, "`retries` must be at least 0"),
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"dataset": pairs("a").select([])}, "`dataset` must be a Dataset with rows"),
        ({"dataset": pairs("a").with_transform(lambda batch: batch)}, "`dataset` has a transform.*with `dataset.map`"),
        ({"dataset": Dataset.from_list([{"prompt": "p", "chosen": "c"}])}, "Row 0 of the data set, column `rejected`"),
        ({"dataset": Dataset.from_list([{"prompt": 3, "chosen": "c", "rejected": "r"}])}, "Row 0 .* must all be"),
        ({"dataset": Dataset.from_list([{"chosen": [{"role": "a"}], "rejected": [{"role": "a"}]}])}, "Row 0 .* need `role`"),
        (
            {"dataset": Dataset.from_list([{"chosen": f"\n\nHuman: {i}\n\nAssistant: a", "rejected": s}
                                           for i, s in enumerate(["\n\nHuman: 0\n\nAssistant: b", "what?"])])},
            "Row 1 of the data set has the standard format, but the first row has the dialogue one",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_before_anything_is_asked(server, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        edit(server, **{"dataset": pairs("a"), **kwargs}, output=tmp_path / "out")
    assert not server.bodies and not (tmp_path / "out").exists()


def test_other_bad_arguments_are_named(server, tmp_path):
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match="`output` is a folder with other things in it"):
        edit(server, pairs("a"), tmp_path)
    for kwargs, message in (
        ({"max_edit_ratio": 0}, "`max_edit_ratio` must be above 0"),
        ({"max_hunks": 0}, "`max_hunks` must be at least 1"),
        ({"max_length_change": -1}, "`max_length_change` must be at least 0"),
        ({"max_length_change": math.inf}, "`max_length_change` must be a finite number and at least 0, got inf"),
        ({"max_length_change": math.nan}, "`max_length_change` must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            EditChecks(**kwargs)
    with pytest.raises(ValueError, match="`settings` cannot have `temperature`"):
        make_editor(server, settings={"temperature": 1})
    for kwargs, message in (
        ({"prices": (-1.0, 0.0)}, "`prices` must be at least 0"),
        ({"prices": (0.0, math.nan)}, "`prices` must be a finite number"),
        ({"temperature": math.nan}, "`temperature` must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            make_editor(server, **kwargs)
    with pytest.raises(ValueError, match="`retry_temperature` must be a finite number above 0"):
        LocalEditor(tiny.causal_lm(), tiny.tokenizer(), retry_temperature=0)


# --- models ----------------------------------------------------------------------------------------------------------

WORDS = ["<edited>", "</edited>", "go", *"abcdefghij"]  # tokens 3 to 15
SPOKEN = "{criteria} {prompt} {answer} <edited> </edited> go"


def speaker(transitions, **kwargs):
    """A model and a tokenizer: after `go` (and after an unknown word, which a retry ends with) it says `<edited> a`,
    then what `transitions` have."""
    ids = {word: 3 + i for i, word in enumerate(WORDS)}
    chain = {2: {3: 1.0}, ids["go"]: {3: 1.0}, 3: {ids["a"]: 1.0}, ids["</edited>"]: {1: 1.0}}
    chain |= {ids[word]: {ids[to]: p for to, p in after.items()} for word, after in transitions.items()}
    return tiny.bigram_lm(chain, **kwargs), tiny.word_tokenizer(words=WORDS)


def test_a_local_model_edits_in_batches_and_samples_where_it_was_refused(server, tmp_path):
    torch.manual_seed(0)
    end = {"</edited>": 20.0, "g": 5.0}
    model, tokenizer = speaker({"a": {"b": 0.4, "c": 0.6}, "b": end, "c": end})
    model.generation_config.repetition_penalty = 5.0  # with it, it would say "g" for the mark, which it has read before
    editor = LocalEditor(model.train(), tokenizer, batch_size=3, max_new_tokens=8)
    calls = []
    generate = model.generate
    model.generate = lambda **kwargs: calls.append(kwargs) or generate(**kwargs)
    dataset = pairs("a b", "a c", "a d d", "a " * 130, "j")
    result = edit(server, dataset, tmp_path, editor, template=SPOKEN, retries=20, checks=EditChecks(1.0))
    # Greedily it says "a c", which is no edit of "a c"; by chance it says "a b".
    assert result.dataset["chosen"][:] == ["a c", "a b", "a c"] and result.dataset["row"][:] == [0, 1, 2]
    assert result.counts == {"edited": 3, "length": 1, "request_failed": 1}
    assert "the model reads 128" in dropped(tmp_path)[0]["detail"]
    assert calls[0]["input_ids"].shape[0] == 3 and not calls[0]["do_sample"]
    assert calls[1]["input_ids"].shape[0] == 1 and calls[1]["do_sample"] and calls[1]["temperature"] == 0.7
    assert model.training and result.usage.completion_tokens > 0


def test_a_local_model_reads_the_chat_template_and_no_padding():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}Assistant:"
    editor = LocalEditor(tiny.causal_lm(initializer_range=1.0), tokenizer, max_new_tokens=8)
    requests = ["the dog", "This movie was lousy. I couldn't keep my eyes open", "mix the flour"]
    together = editor(requests, 0)
    assert editor.usage.prompt_tokens == sum(len(tokenizer(f"user: {text}Assistant:").input_ids) for text in requests)
    assert together == [editor([request], 0)[0] for request in requests]
    assert len(set(together)) == 3


@pytest.mark.skipif(not is_serve_available(), reason="`transformers serve` needs fastapi, uvicorn and openai")
@pytest.mark.slow
def test_transformers_serve(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    model, tokenizer = speaker({"a": {"b": 1.0}, "b": {"</edited>": 1.0}}, max_position_embeddings=1024)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}go"
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path / "model")]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "server.log").open("w") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)

        def editor(**settings):
            base_url = f"http://127.0.0.1:{port}/v1"
            return EndpointEditor(base_url, str(tmp_path / "model"), settings=settings, concurrency=2, retries=0)

        # It says "<edited> a b </edited>", whatever it reads.
        dataset, checks = pairs("a c", "a b", "a b c d e f g", "d c", "a e"), EditChecks(0.7)
        result = edit(None, dataset, tmp_path / "out", editor(max_tokens=16), checks=checks, retries=1)
        assert result.counts == {"edited": 2, "identical": 1, "length": 1, "edit_ratio": 1}
        assert result.dataset["chosen"][:] == ["a b", "a b"] and result.dataset["row"][:] == [0, 4]
        assert result.usage.requests == 8 and result.usage.completion_tokens >= 8 * 4
        result = edit(None, dataset, tmp_path / "cut", editor(max_tokens=2), checks=checks, retries=0)
        assert result.counts == {"edited": 0, "unparsed": 5} and result.usage.completion_tokens == 10
        assert dropped(tmp_path / "cut")[0]["answer"] == "<edited> a"
    finally:
        process.terminate()
        process.wait(timeout=30)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["edit", *map(str, arguments)])
    args.run(args)


def test_the_command_with_an_endpoint_and_a_reward_model(server, tmp_path, capsys):
    pairs("it is bad", "all fine", "bad and bad again", "so bad").to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "criteria.txt").write_text("be brief")
    (tmp_path / "template.txt").write_text(TEMPLATE)
    torch.manual_seed(0)
    TokenRewardModel.from_backbone(tiny.sequence_classifier()).save_pretrained(tmp_path / "reward")
    tiny.tokenizer().save_pretrained(tmp_path / "reward")
    options = ["--criteria", tmp_path / "criteria.txt", "--prompt-template", tmp_path / "template.txt", "--limit", 3]
    options += ["--retries", 0, "--concurrency", 1, "--prices", 1, 2, "--max-edit-ratio", 0.9, "--max-new-tokens", 50]
    source = [tmp_path / "pairs.jsonl", tmp_path / "out", "--endpoint", server.url, "--model", "m"]
    run(*source, *options, "--max-hunks", 1)
    output = capsys.readouterr().out
    assert "1 of 3 rows were edited; dropped: 1 identical, 1 hunks. 3 requests took 300 prompt tokens" in output
    assert "which cost 0.0003." in output
    assert texts(server)[0].startswith("be brief|p0|") and server.bodies[0]["max_tokens"] == 50
    assert f"| dataset | `{tmp_path}/pairs.jsonl` |" in (tmp_path / "out" / "README.md").read_text()

    # A score and its negative: what the one refuses, the other keeps.
    model = TokenRewardModel.from_pretrained(tmp_path / "reward")
    kept = []
    for sign in (1, -1):
        model.score.weight.data *= sign
        model.save_pretrained(tmp_path / f"reward{sign}")
        tiny.tokenizer().save_pretrained(tmp_path / f"reward{sign}")
        source[1] = tmp_path / f"out{sign}"
        run(*source, *options, "--reward-model", tmp_path / f"reward{sign}")
        kept += load_from_disk(str(source[1]))["row"][:]
    assert sorted(kept) == [0, 2]


def test_the_command_fails_where_no_request_is_answered(server, tmp_path):
    server.respond = lambda *_: (400, "too long")
    pairs("it is bad", "all bad again").to_json(tmp_path / "pairs.jsonl")
    (tmp_path / "template.txt").write_text(TEMPLATE)
    arguments = [tmp_path / "pairs.jsonl", tmp_path / "out", "--endpoint", server.url, "--model", "m"]
    arguments += ["--prompt-template", tmp_path / "template.txt"]
    with pytest.raises(ValueError, match="No request was answered. The last, for row 1: .*status 400: 'too long'"):
        run(*arguments)
    server.respond = good_for_bad
    run(*arguments)
    assert load_from_disk(str(tmp_path / "out"))["chosen"][:] == ["it is good", "all good again"]


def test_the_command_with_a_local_model(tmp_path, capsys):
    model, tokenizer = speaker({"a": {"b": 1.0}, "b": {"</edited>": 1.0}})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "template.txt").write_text(SPOKEN)
    pairs("a c", "a b").to_json(tmp_path / "pairs.jsonl")
    options = ["--prompt-template", tmp_path / "template.txt", "--max-new-tokens", 8, "--batch-size", 1]
    run(tmp_path / "pairs.jsonl", tmp_path / "out", "--local", tmp_path / "model", *options)
    assert "1 of 2 rows were edited; dropped: 1 identical." in capsys.readouterr().out
    assert load_from_disk(str(tmp_path / "out"))["chosen"][:] == ["a b"]


def test_the_command_names_what_is_missing_and_is_light(tmp_path, capsys):
    with pytest.raises(ValueError, match="--endpoint needs --model"):
        run("data", "out", "--endpoint", "http://localhost/v1")
    with pytest.raises(ValueError, match="--model goes with --endpoint"):
        run("data", "out", "--local", "m", "--model", "m")
    for arguments in (["data", "out"], ["data", "out", "--local", "m", "--endpoint", "http://localhost/v1"]):
        with pytest.raises(SystemExit):
            run(*arguments)
    assert "one of the arguments --endpoint --local is required" in capsys.readouterr().err
    code = "import sys, trl_tokenreward.cli.edit; print({'torch', 'datasets', 'transformers'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
