"""What annotators decide: whose turn a row is, that nothing is lost, who may ask, and the data set that comes of it."""

import json
import sys
import time
import urllib.error
import urllib.request

import pytest
from datasets import Dataset, load_from_disk

import tiny
from annotating import opened, pairs, serving
from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer, annotate_dataset, read_annotations
from trl_tokenreward.annotation.store import OtherTab, Refused, annotator_name, prompt_turns
from trl_tokenreward.cli import main as cli
from trl_tokenreward.editing.checks import EditChecks
from trl_tokenreward.editing.edit_dataset import edit_dataset
from trl_tokenreward.editing.log import EditLog
from trl_tokenreward.utils.chat_endpoint import EndpointUsage


pytestmark = pytest.mark.any_trl

ANSWERS = [f"the answer number {i} is very bad indeed" for i in range(6)]


def row_of(store, name, tab="t"):
    return store.show(name, tab)["row"]


def save_next(store, name, old="bad", new="good"):
    shown = store.show(name, "t")
    store.save(name, "t", shown["row"], shown["text"].replace(old, new))
    return shown["row"]


# --- rows ------------------------------------------------------------------------------------------------------------


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
        ]
    )
    with opened(chat, tmp_path / "chat") as store:
        assert store.about()["unfit"] == {"several turns differ": 1, "the rejected answer is empty": 1}
        shown = store.show("ada", "t")
        assert (shown["turns"], shown["preferred"], shown["text"]) == ([("user", "hi")], "good", "it is bad")
        store.save("ada", "t", 0, "it is good")
        assert store.show("ada", "t")["row"] is None
    annotations = read_annotations(tmp_path / "chat")
    assert annotations.counts() == {"edited": 1, "several_turns": 1, "empty": 1}
    with opened(chat, tmp_path / "chat"):
        pass
    assert read_annotations(tmp_path / "chat").counts() == annotations.counts()  # noted once
    [row] = annotations.save(tmp_path / "chat-edits").to_list()
    assert row["prompt"] == [user] and row["rejected"] == said[1:]
    assert row["chosen"] == [{"role": "assistant", "content": "it is good"}]

    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = [{"chosen": f"{dialogue} fine", "rejected": f"{dialogue} it is bad"}]
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


# --- the disk --------------------------------------------------------------------------------------------------------


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


def test_a_line_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    log = EditLog(tmp_path / "log.jsonl", {"a": 1}, ("row",))
    before = log.path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("trl_tokenreward.editing.log.os.fsync", fail)
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
            patch.setattr("trl_tokenreward.editing.log.os.fsync", fail)
            status, answer, _ = ask(f"{url}/api/save", body)
        assert (status, answer["error"]) == (500, "It could not be written down: disk full")
        assert store.progress("ada")["mine"] == 0
        assert ask(f"{url}/api/save", body)[0] == 200 and store.progress("ada")["mine"] == 1
    assert len(read_annotations(tmp_path / "out").decisions) == 1


def test_a_folder_is_one_servers_and_one_data_sets(tmp_path):
    dataset = pairs(*ANSWERS)
    with opened(dataset, tmp_path / "out", limit=2) as store:
        save_next(store, "ada")
        with pytest.raises(ValueError, match="Another server has .*out open"), opened(dataset, tmp_path / "out"):
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
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"criteria": " "}, "`criteria` is empty"),
        ({"checks": EditChecks(score=lambda prompts, answers: [0.0])}, "`checks` has a `score`"),
        ({"host": "0.0.0.0"}, "0.0.0.0 can be reached from other machines, so a password is needed: set TRL_"),
        ({"host": "192.168.0.7", "password": "short"}, "must have at least 8 characters"),
        ({"dataset": pairs("a").select([])}, "`dataset` must be a Dataset with rows"),
    ],
)
def test_bad_arguments_are_named(tmp_path, kwargs, message):
    arguments = {"dataset": pairs(*ANSWERS), "output": tmp_path / "out", **kwargs}
    with pytest.raises(ValueError, match=message):
        annotate_dataset(**arguments)
    assert not (tmp_path / "out").exists()


def test_names(tmp_path):
    assert annotator_name("  Ada   Lovelace ") == "Ada Lovelace" and annotator_name("žofie@x.org") == "žofie@x.org"
    assert annotator_name("e\N{COMBINING ACUTE ACCENT}va") == "éva"
    for name in ("", "...", "a|b", "a\nb\x1b", "x" * 41, "<b>"):
        with pytest.raises(Refused, match="A name has 1 to 40 letters"):
            annotator_name(name)
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match="a folder with other things in it"), opened(pairs("a b"), tmp_path):
        pass


# --- who may ask -----------------------------------------------------------------------------------------------------


def ask(url, body=None, headers=None, data=None):
    """Status, JSON or text, headers."""
    if body is not None:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        response = opener.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        content = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(content) if is_json else content, response.headers


def test_only_this_machines_own_pages_are_answered(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        port = url.rpartition(":")[2]
        status, page, headers = ask(url)
        assert status == 200 and "<title>Minimal edits</title>" in page
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert ask(f"{url}/api/about", {})[0] == 200
        for host in (f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
            assert ask(f"{url}/api/about", {}, {"Host": host})[0] == 200, host
        for host in (f"evil.example:{port}", "192.168.0.7", "localhost.evil.example", "[", ""):
            for path, body in (("/", None), ("/page.js", None), ("/api/about", {})):
                assert ask(url + path, body, {"Host": host})[0] in (400, 403), (host, path)
        for origin in ("http://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}", f"http://localhost:{port}"):
            assert ask(f"{url}/api/about", {}, {"Origin": origin})[0] == 403, origin
        assert ask(f"{url}/api/about", {}, {"Origin": url})[0] == 200
        # What a form of another site can send.
        assert ask(f"{url}/api/leave", headers={"Content-Type": "text/plain"}, data=b'{"annotator": "ada"}')[0] == 415
        assert ask(f"{url}/api/about")[0] == 405
        assert ask(f"{url}/annotation_server.py")[0] == ask(f"{url}/../annotation_server.py")[0] == 404


@pytest.mark.parametrize(
    ("action", "body", "status", "problem"),
    [
        ("show", {"annotator": "ada", "tab": "t", "row": "0"}, 400, "`row` is missing or of another type"),
        ("show", {"annotator": "ada", "tab": "t"}, 400, "`row` is missing"),
        ("check", {"annotator": "ada", "tab": "t", "row": True, "text": "", "take": False}, 400, "`row` is missing"),
        ("leave", {"annotator": "ada", "more": 1}, 400, "`more` is nothing that leave takes"),
        ("show", {"annotator": "<b>", "tab": "t", "row": None}, 422, "A name has 1 to 40"),
        ("show", {"annotator": "ada", "tab": "t", "row": 99}, 422, "Row 99 was not given to ada"),
        ("leave", [1], 400, "must be a JSON object"),
        ("leave", "x" * 2**22, 413, "longer than 4194304 bytes"),
        ("login", {"password": "x"}, 404, "There is no password"),
    ],
)
def test_bad_requests_are_told_so(tmp_path, action, body, status, problem):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        answer = ask(f"{url}/api/{action}", body)
        assert answer[0] == status and problem in answer[1]["error"]


def test_a_password(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store, "correct horse") as url:
        assert ask(f"{url}/page.js")[0] == 401
        assert "Password" in ask(url)[1]  # sent on to /login
        assert ask(f"{url}/page.css")[0] == ask(f"{url}/edit_colours.css")[0] == 200
        assert ask(f"{url}/api/about", {})[0] == 401
        assert ask(f"{url}/api/about", {}, {"Cookie": "trl-tokenreward-session=guess"})[0] == 401
        status, _, headers = ask(f"{url}/api/login", {"password": "correct horse"}, {"Host": "notes.example"})
        cookie = headers["Set-Cookie"]
        assert status == 200 and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        session = {"Cookie": cookie.partition(";")[0]}
        assert ask(f"{url}/api/about", {}, session)[0] == 200 and "editor" in ask(url, headers=session)[1]
        assert ask(f"{url}/api/about", {}, {**session, "Origin": "http://evil.example"})[0] == 403
        for _ in range(5):
            assert ask(f"{url}/api/login", {"password": "wrong horse"})[0] == 401
        for guess in ("wrong horse", "correct horse"):
            assert ask(f"{url}/api/login", {"password": guess})[0] == 429
        assert ask(f"{url}/api/about", {}, session)[0] == 200  # who is in stays in


# --- what comes of it ------------------------------------------------------------------------------------------------


def annotated(folder):
    dataset = pairs(*ANSWERS)
    with opened(dataset, folder, per_row=2, about={"dataset": "mine"}, criteria="be nice") as store:
        for name in ("ada", "bob"):
            save_next(store, name)  # alike
        save_next(store, "ada", "very bad", "good")  # row 1
        row_of(store, "bob")
        store.skip("bob", "t", 1, "nothing_wrong")
        row_of(store, "ada")
        store.skip("ada", "t", 2, "other", "a | b\nc")
    return dataset


def test_the_edits_train_a_reward_model(tmp_path):
    annotated(tmp_path / "work")
    annotations = read_annotations(tmp_path / "work")
    assert annotations.counts() == {"edited": 3, "nothing_wrong": 1, "other": 1}
    assert annotations.by_annotator() == {
        "ada": {"edited": 2, "skipped": 1, "median edit ratio": pytest.approx((2 / 16 + 3 / 15) / 2)},
        "bob": {"edited": 1, "skipped": 1, "median edit ratio": 2 / 16},
    }
    dataset = annotations.save(tmp_path / "edits")
    assert load_from_disk(str(tmp_path / "edits")).to_list() == dataset.to_list()
    assert dataset.to_list()[2] == {
        "prompt": "p1",
        "chosen": "the answer number 1 is good indeed",
        "rejected": ANSWERS[1],
        "row": 1,
        "annotator": "ada",
        "edit_ratio": 0.2,
    }
    dropped = [json.loads(line) for line in (tmp_path / "edits" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["row"], row["annotator"], row["reason"], row["detail"]) for row in dropped] == [
        (1, "bob", "nothing_wrong", ""),
        (2, "ada", "other", "a | b\nc"),
    ]
    # Row 0 alike; of row 1 ada marked "very" and "bad", bob nothing. n_11 = 1, n_10 = 2, n_00 = 13.
    agreement = json.loads((tmp_path / "edits" / "agreement.json").read_text())
    assert agreement["rows"] == 2 and agreement["f1"]["value"] == pytest.approx(2 / 4)
    assert agreement["alpha"]["value"] == pytest.approx(1 - 31 * 2 / (28 * 4))
    card = (tmp_path / "edits" / "README.md").read_text()
    for part in ("| edited | 3 |", "| other | 1 |", "| bob | 1 | 1 | 0.125 |", "| dataset | `mine` |", "be nice"):
        assert part in card, part
    assert "| ada and bob | 2 | 16 | 87.5% |" in card
    with pytest.raises(ValueError, match="exists already"):
        annotations.save(tmp_path / "edits")

    args = TokenRewardConfig(
        str(tmp_path / "model"), use_cpu=True, bf16=False, report_to="none", max_steps=1, per_device_train_batch_size=2
    )
    trainer = TokenRewardTrainer(tiny.causal_lm(), args, train_dataset=dataset, processing_class=tiny.tokenizer())
    trainer.train()
    assert trainer.dropped["train"]["kept"] == 3


def test_people_and_models_make_one_data_set(tmp_path):
    class Echo:
        batch_size = concurrency = 1
        prices, settings = None, {}

        def __init__(self):
            self.usage = EndpointUsage()

        def __call__(self, requests, attempt):
            return [f"<edited>{request.replace('bad', 'good')}</edited>" for request in requests]

    dataset = annotated(tmp_path / "work")
    people = read_annotations(tmp_path / "work").save(tmp_path / "people")
    template = "{answer}<edited></edited>{prompt}{criteria}"
    model = edit_dataset(dataset, Echo(), tmp_path / "model", template=template, limit=1, progress=False).dataset
    assert people.remove_columns(["annotator", "edit_ratio"]).features == model.features


def test_the_commands(tmp_path, capsys, monkeypatch):
    annotated(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "120")
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    arguments = ["annotations", str(tmp_path / "work"), "--save", str(tmp_path / "edits")]
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    output = capsys.readouterr().out
    assert "nothing_wrong" in output and "Krippendorff's alpha" in output and "ada and bob" in output
    assert f"3 edits are in {tmp_path / 'edits'}; see its README.md." in " ".join(output.split())
    assert "| tokens of their original answers |" in (tmp_path / "edits" / "README.md").read_text()
    assert cli.main(["annotations", str(tmp_path)]) == 2

    pairs("a").to_json(tmp_path / "pairs.jsonl")
    monkeypatch.delenv("TRL_TOKENREWARD_PASSWORD", raising=False)
    source = ["annotate", str(tmp_path / "pairs.jsonl"), str(tmp_path / "out")]
    assert cli.main([*source, "--host", "0.0.0.0"]) == 2
    assert "set TRL_TOKENREWARD_PASSWORD" in capsys.readouterr().err
    with serving(None) as url:
        assert cli.main([*source, "--port", url.rpartition(":")[2]]) == 2
    assert "cannot be listened on" in capsys.readouterr().err


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    pairs("a").to_json(tmp_path / "pairs.jsonl")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "trl_tokenreward.annotation.server", raising=False)
    assert cli.main(["annotate", str(tmp_path / "pairs.jsonl"), str(tmp_path / "out")]) == 2
    assert "uvicorn is missing: pip install 'trl-tokenreward[annotate]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
