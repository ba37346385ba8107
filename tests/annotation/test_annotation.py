"""What annotators decide: whose turn a row is, that nothing is lost, who may ask, and the data set that comes of it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from datasets import Dataset

from annotating import opened, pairs, serving
from annotation_cases import ANSWERS, ask, row_of, save_next
from trl_tokenreward import annotate_dataset, read_annotations
from trl_tokenreward.annotation.store import AnnotationStore, OtherTab, Refused, annotator_name, prompt_turns
from trl_tokenreward.editing.checks import EditChecks
from trl_tokenreward.editing.log import EditLog


pytestmark = pytest.mark.any_trl


def test_what_is_typed_is_judged_as_an_editors_edit_is(tmp_path):
    answer = " one two bad four five\n"
    checks = EditChecks(0.45, 1, 0.3)
    with opened(pairs(answer), tmp_path, checks=checks) as store:
        shown = store.show("ada", "t")
        assert (shown["row"], shown["text"], shown["preferred"]) == (0, "one two bad four five", "better 0")
        assert shown["turns"] == [("", "p0")] and shown["reason"] == "identical"
        for text in (
            "one two good four five",
            "ONE TWO bad FOUR five",
            "ONE two bad four FIVE",
            "one",
            "one  two bad four five",
        ):
            judged = store.check("ada", "t", 0, text)
            edited = f" {text}\n"  # the white space around an answer is no part of the edit
            assert (judged["reason"], judged["detail"]) == checks("p0", answer, edited), text
            if judged["reason"] != "edited":
                with pytest.raises(Refused, match=judged["detail"][:20]):
                    store.save("ada", "t", 0, text)
        judged = store.save("ada", "t", 0, "  one two good four five")
        assert judged["pieces"] == [
            ["keep", " one two "],
            ["delete", "bad"],
            ["insert", "good"],
            ["keep", " four five\n"],
        ]
        assert (judged["edit_ratio"], judged["hunks"]) == (0.2, 1)
        assert judged["length_change"] == pytest.approx(1 / 23)
    [decision] = read_annotations(tmp_path).decisions
    assert (decision["edited"], decision["edit_ratio"]) == (" one two good four five\n", 0.2)


def test_line_breaks_that_a_text_field_cannot_hold_come_back(tmp_path):
    with opened(pairs("one bad line\r\n\r\ntwo\rthree\n\r\nfour"), tmp_path) as store:
        shown = store.show("ada", "t")
        assert shown["text"] == "one bad line\n\ntwo\nthree\n\nfour"
        store.save("ada", "t", 0, "one good line\n\ntwo\nand three\n\nfour")
    [decision] = read_annotations(tmp_path).decisions
    assert decision["edited"] == "one good line\r\n\r\ntwo\rand three\n\r\nfour"


def test_messages_dialogues_and_rows_without_one_answer(tmp_path):
    user = {"role": "user", "content": "hi"}
    said = [{"role": "assistant", "content": text} for text in ("good", "it is bad")]
    chat = Dataset.from_list(
        [
            {"prompt": [user], "chosen": said[:1], "rejected": said[1:]},
            {"prompt": [user], "chosen": said[:1], "rejected": [said[1], user, said[1]]},
            {"prompt": [], "chosen": said[:1], "rejected": [{"role": "assistant", "content": " "}]},
            {"prompt": [user], "chosen": said[:1], "rejected": [{**said[1], "tool_calls": ["look_up"]}]},
        ]
    )
    with opened(chat, tmp_path / "chat") as store:
        unfit = {"several turns differ": 1, "the rejected answer is empty": 1}
        unfit["the rejected answer is more than a text, such as a call of a tool"] = 1
        assert store.about()["unfit"] == unfit
        shown = store.show("ada", "t")
        assert (shown["turns"], shown["preferred"], shown["text"]) == ([("user", "hi")], "good", "it is bad")
        store.save("ada", "t", 0, "it is good")
        assert store.show("ada", "t")["row"] is None
    annotations = read_annotations(tmp_path / "chat")
    assert annotations.counts() == {"edited": 1, "several_turns": 1, "more_than_text": 1, "empty": 1}
    with opened(chat, tmp_path / "chat"):
        pass
    assert read_annotations(tmp_path / "chat").counts() == annotations.counts()  # noted once
    [row] = annotations.save(tmp_path / "chat-edits").to_list()
    assert row["prompt"] == [user] and row["rejected"] == [{**said[1], "tool_calls": None}]
    assert row["chosen"] == [{"role": "assistant", "content": "it is good", "tool_calls": None}]

    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = [{"prompt": None, "chosen": f"{dialogue} fine", "rejected": f"{dialogue} it is bad"}]
    with opened(Dataset.from_list(rows), tmp_path / "hh") as store:
        shown = store.show("ada", "t")
        assert shown["turns"] == [("Human", "a"), ("Assistant", "b"), ("Human", "c")]
        assert (shown["preferred"], shown["text"]) == ("fine", "it is bad")
        store.save("ada", "t", 0, "it is fine")
    [row] = read_annotations(tmp_path / "hh").save(tmp_path / "hh-edits").to_list()
    assert (row["prompt"], row["chosen"], row["rejected"]) == (dialogue, " it is fine", " it is bad")
    assert prompt_turns("") == [] and prompt_turns([{"role": "tool", "content": None}]) == [("tool", "null")]


def test_a_row_is_given_to_one_annotator_or_to_as_many_as_are_asked_for(tmp_path):
    dataset = pairs(*ANSWERS)
    with opened(dataset, tmp_path / "one") as store:
        assert [row_of(store, name) for name in ("ada", "bob", "cy", "ada")] == [0, 1, 2, 0]
        assert save_next(store, "ada") == 0 and save_next(store, "ada") == 3
        assert store.progress("ada") == {"mine": 2, "left": 2, "done": 2, "needed": 6, "seconds": None}
        assert store.progress("dora")["left"] == 2  # 4 and 5: bob and cy have 1 and 2
    with opened(dataset, tmp_path / "two", per_row=2) as store:
        assert [save_next(store, name) for name in ("ada", "bob", "cy", "ada", "cy", "bob")] == [0, 0, 1, 1, 2, 2]
        assert store.progress("ada") == {"mine": 2, "left": 3, "done": 6, "needed": 12, "seconds": None}
    with opened(dataset, tmp_path / "some", per_row=2, overlap=0.34) as store:
        for name in ("ada", "bob"):
            while row_of(store, name) is not None:
                save_next(store, name)
        assert store.progress("ada") == {"mine": 6, "left": 0, "done": 8, "needed": 8, "seconds": 0}
    both = [d["row"] for d in read_annotations(tmp_path / "some").decisions if d["annotator"] == "bob"]
    assert both == [2, 5]


def test_a_row_is_freed_when_its_annotator_leaves_or_stays_away(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr("trl_tokenreward.annotation.store.time.time", lambda: now)
    with opened(pairs(*ANSWERS), tmp_path, free_after=60.0) as store:
        assert [row_of(store, name) for name in ("ada", "bob")] == [0, 1]
        store.leave("ada")
        assert row_of(store, "cy") == 0
        now += 50
        store.check("cy", "t", 0, "the answer number 0 is")  # a keystroke: cy is there
        now += 50
        assert row_of(store, "ada") == 1  # bob's, who has been away
        assert row_of(store, "bob") == 2
        store.leave("cy")  # a row that was worked on stays
        now += 1000
        assert [row_of(store, name) for name in ("dora", "cy")] == [0, 0]  # nothing that was typed is lost
        assert store.show("cy", "t")["text"] == "the answer number 0 is"


def test_one_goes_through_ones_own_rows_and_changes_ones_mind(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store:
        assert [save_next(store, "ada") for _ in range(2)] == [0, 1]
        here = store.show("ada", "t")
        assert (here["row"], here["previous"], here["following"], here["place"]) == (2, 1, None, 3)
        before = store.show("ada", "t", 1)
        assert (before["previous"], before["following"], before["outcome"]) == (0, 2, "edited")
        assert before["text"] == before["saved"] == "the answer number 1 is very good indeed"
        store.check("ada", "t", 1, "the answer number 1 is very nice indeed")
        assert store.show("ada", "t")["row"] == 2  # a change of an old row is no reason to go back
        assert store.show("ada", "t", 1)["text"] == "the answer number 1 is very nice indeed"
        store.skip("ada", "t", 1, "unclear", "hm", text="the answer number 1 is very nice indeed")
        again = store.show("ada", "t", 1)
        assert (again["outcome"], again["comment"]) == ("unclear", "hm")
        assert again["text"] == "the answer number 1 is very nice indeed"  # skipping takes nothing away
        with pytest.raises(Refused, match="Row 4 was not given to ada"):
            store.show("ada", "t", 4)
        with pytest.raises(Refused, match="no such reason as 'tired'"):
            store.skip("ada", "t", 1, "tired")
        with pytest.raises(Refused, match="Say what the reason is"):
            store.skip("ada", "t", 1, "other", " ")
        with pytest.raises(Refused, match="half of a character"):
            store.check("ada", "t", 1, "the answer \ud800")
    assert read_annotations(tmp_path).counts() == {"edited": 1, "unclear": 1}
    assert len((tmp_path / "annotations.jsonl").read_text().splitlines()) == 4  # settings, two edits, a skip


def test_a_later_tab_takes_a_row_over(tmp_path):
    text = "the answer number 0 is very good indeed"
    with opened(pairs(*ANSWERS), tmp_path) as store:
        store.show("ada", "one")
        store.check("ada", "one", 0, text)
        assert store.show("ada", "two")["text"] == text
        for act in (store.check, store.save):
            with pytest.raises(OtherTab):
                act("ada", "one", 0, "lost?")
        with pytest.raises(OtherTab):
            store.skip("ada", "one", 0, "unclear")
        store.check("ada", "one", 0, text, take=True)
        with pytest.raises(OtherTab):
            store.save("ada", "two", 0, text)
        store.save("ada", "one", 0, text)


def test_a_server_that_was_killed_goes_on_where_it_was(tmp_path):
    dataset = pairs(*ANSWERS)
    with opened(dataset, tmp_path) as store:
        save_next(store, "ada")
        row_of(store, "bob")
        store.check("ada", "t", store.show("ada", "t")["row"], "half of a")
    path = tmp_path / "annotations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"row": 1, "hash": "x", "anno')  # what a kill leaves of a line that was not acknowledged
    assert len(read_annotations(tmp_path).decisions) == 1  # who only reads leaves it: it may be being written
    assert path.read_bytes() != whole
    with opened(dataset, tmp_path) as store:
        assert path.read_bytes() == whole
        shown = store.show("ada", "t")
        assert (shown["row"], shown["text"]) == (2, "half of a") and row_of(store, "bob") == 1
        assert store.show("ada", "t", 0)["outcome"] == "edited"
        assert row_of(store, "cy") == 3
    draft = next((tmp_path / "drafts").glob("2-*.json"))
    kept = draft.read_text()
    with opened(dataset, tmp_path) as store:
        store.save("ada", "t", 2, ANSWERS[2].replace("bad", "good"))
    draft.write_text(kept)  # as if it had been killed between the decision and the draft's removal
    with opened(dataset, tmp_path) as store:
        assert store.show("ada", "t", 2)["text"] == ANSWERS[2].replace("bad", "good") and not draft.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        '{"row": 0}',
        '{"row": "0", "annotator": "ada", "text": null, "time": 1.0}',
        '{"row": 0, "annotator": "ada", "text": "\\ud83d", "time": 1.0}',
        '{"row": 0, "annotator": "ada", "text": null, "time": 1.0, "more": 1}',
        '{"row": 0, "annotator": "ada", "text": "of another file", "time": 1.0}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_draft_is_named(tmp_path, content):
    with opened(pairs(*ANSWERS), tmp_path):
        pass
    (tmp_path / "drafts" / "0-strange.json").write_text(content)
    with pytest.raises(ValueError, match=r"0-strange.json is no draft of an annotator .*move it out of the folder"):
        AnnotationStore(pairs(*ANSWERS), tmp_path)
    (tmp_path / "drafts" / "0-strange.json").unlink()
    with opened(pairs(*ANSWERS), tmp_path):  # the folder is free again
        pass


def test_a_draft_is_on_the_disk_or_is_the_one_before(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("disk full")

    with opened(pairs(*ANSWERS), tmp_path) as store:
        store.show("ada", "t")
        store.check("ada", "t", 0, "the answer number 0 is good")
        with monkeypatch.context() as patch:
            patch.setattr("trl_tokenreward.utils.files.os.fsync", fail)
            with pytest.raises(OSError, match="disk full"):
                store.check("ada", "t", 0, "the answer number 0 is better")
        assert len([*(tmp_path / "drafts").iterdir()]) == 1
    with opened(pairs(*ANSWERS), tmp_path) as store:
        assert store.show("ada", "t")["text"] == "the answer number 0 is good"


def test_one_work_is_told_from_another_of_the_same_rows(tmp_path):
    ids = []
    for folder in ("one", "two", "one"):
        with opened(pairs(*ANSWERS), tmp_path / folder) as store:
            ids.append(store.about()["id"])
    assert ids[0] == ids[2] != ids[1]
    log = tmp_path / "one/annotations.jsonl"  # as an earlier version began it
    head = json.loads(log.read_text())
    del head["id"]
    log.write_text(json.dumps(head) + "\n")
    with opened(pairs(*ANSWERS), tmp_path / "one") as store:
        assert store.about()["id"] == store.fingerprint


def test_a_start_that_was_killed_early_is_no_other_thing(tmp_path):
    (tmp_path / ".lock").touch()  # all that there is before the log
    with opened(pairs(*ANSWERS), tmp_path) as store:
        assert store.show("ada", "t")["row"] == 0


def test_a_line_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    log = EditLog(tmp_path / "log.jsonl", {"a": 1}, ("row",))
    before = log.path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("trl_tokenreward.utils.jsonl.os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            log.append({"row": 1})
    assert log.path.read_bytes() == before
    log.append({"row": 2}, {"row": 3})
    assert [line["row"] for line in EditLog(log.path, {"a": 1}, ("row",)).lines] == [2, 3]


def test_a_full_disk_is_said_and_nothing_counts_as_saved(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("disk full")

    with opened(pairs(*ANSWERS), tmp_path / "out") as store, serving(store) as url:
        store.show("ada", "t")
        body = {"annotator": "ada", "tab": "t", "row": 0, "text": "the answer number 0 is very good indeed"}
        with monkeypatch.context() as patch:
            patch.setattr("trl_tokenreward.utils.jsonl.os.fsync", fail)
            status, answer, _ = ask(f"{url}/api/save", body)
        assert (status, answer["error"]) == (500, "It could not be written down: disk full")
        assert store.progress("ada")["mine"] == 0
        assert ask(f"{url}/api/save", body)[0] == 200 and store.progress("ada")["mine"] == 1
    assert len(read_annotations(tmp_path / "out").decisions) == 1


def test_a_folder_is_one_servers_and_one_data_sets(tmp_path):
    dataset = pairs(*ANSWERS)
    with opened(dataset, tmp_path / "out", limit=2) as store:
        save_next(store, "ada")
        with pytest.raises(ValueError, match="Another process, .* has .*out open"), opened(dataset, tmp_path / "out"):
            pass
    for other, kwargs, name in (
        (pairs(*ANSWERS[:5], "another"), {}, "data set"),
        (dataset, {"criteria": "be rude"}, "criteria"),
        (dataset, {"checks": EditChecks(0.3)}, "checks"),
    ):
        with (
            pytest.raises(ValueError, match=rf"begun with other settings \({name}\)"),
            opened(other, tmp_path / "out", **kwargs),
        ):
            pass
    with opened(dataset, tmp_path / "out", limit=4, per_row=2, about={"dataset": "moved"}) as store:
        assert store.progress("ada") == {"mine": 1, "left": 3, "done": 1, "needed": 8, "seconds": None}
    with pytest.raises(ValueError, match="has no annotations.jsonl: name the output folder"):
        read_annotations(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"per_row": 0}, "`per_row` must be at least 1"),
        ({"overlap": 0.5}, "`overlap` has no effect where `per_row` is 1"),
        ({"overlap": 1.5, "per_row": 2}, "`overlap` must be above 0 and at most 1"),
        ({"free_after": 0}, "`free_after` must be at least 1"),
        ({"free_after": float("nan")}, "`free_after` must be a finite number and at least 1"),
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"criteria": " "}, "`criteria` is empty"),
        ({"checks": EditChecks(score=lambda prompts, answers: [0.0])}, "`checks` has a `score`"),
        ({"host": "0.0.0.0"}, "0.0.0.0 can be reached from other machines, so a password is needed: set TRL_"),
        ({"port": 99_999}, "`port` must be from 0 to 65535, got 99999"),
        ({"port": -1}, "`port` must be from 0 to 65535, got -1"),
        ({"host": "192.168.0.7", "password": "short"}, "must have at least 8 characters"),
        ({"dataset": pairs("a").select([])}, "`dataset` must be a Dataset with rows"),
    ],
)
def test_bad_arguments_are_named(tmp_path, kwargs, message):
    arguments = {"dataset": pairs(*ANSWERS), "output": tmp_path / "out", **kwargs}
    with pytest.raises(ValueError, match=message):
        annotate_dataset(**arguments)
    assert not (tmp_path / "out").exists()


def test_what_is_the_same_for_all_rows_is_read_between_two_decisions(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store, ThreadPoolExecutor(1) as other:
        with store._lock:
            save_next(store, "ada")
            asked = other.submit(store.about)
            assert not wait([asked], timeout=0.2).done
        assert asked.result()["annotators"] == ["ada"]


def test_names(tmp_path):
    assert annotator_name("  Ada   Lovelace ") == "Ada Lovelace" and annotator_name("žofie@x.org") == "žofie@x.org"
    assert annotator_name("e\N{COMBINING ACUTE ACCENT}va") == "éva"
    for name in ("अनिल", "สมชาย ใจดี", "தமிழ்", "محمّد", "O’Brien", "Jean-Luc D'Arc_2"):
        assert annotator_name(name) == name
    for name in ("", "...", "\N{COMBINING ACUTE ACCENT}", "a|b", "a\nb\x1b", "x" * 41, "<b>"):
        with pytest.raises(Refused, match="A name has 1 to 40 letters"):
            annotator_name(name)
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match="a folder with other things in it"), opened(pairs("a b"), tmp_path):
        pass
