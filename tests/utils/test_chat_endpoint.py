"""The client of chat-completions endpoints, on a local HTTP server, and the templates and files that go with it. More
of it, such as what is asked again and when, is in test_judges.py."""

import asyncio
import json
import time

import pytest

from fake_endpoint import FAULTS, misbehaving
from trl_tokenreward.utils.chat_endpoint import EndpointClient, EndpointError, Unanswered, check_template, fill_template
from trl_tokenreward.utils.jsonl import read_jsonl


pytestmark = pytest.mark.any_trl


@pytest.fixture
def server(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    return serve(lambda text, number: f"{text} {number}")


def make_client(server, **kwargs):
    return EndpointClient(server.url + "/", "m", **{"backoff": 0.001, "retries": 3, **kwargs})


def test_a_request_has_the_settings_and_its_own(server):
    client = make_client(server, settings={"top_p": 0.5, "seed": 1}, prices=(2.0, 10.0))
    assert client.complete(client.body("hi", seed=2)) == "hi 1"
    message = {"role": "user", "content": "hi"}
    assert server.bodies == [{"top_p": 0.5, "seed": 2, "model": "m", "messages": [message]}]
    assert server.headers_seen[0]["Authorization"] == "Bearer sk-secret"
    assert client.cost == client.usage.cost((2.0, 10.0)) == pytest.approx((100 * 2 + 7 * 10) / 1e6)
    assert make_client(server).cost is None


def test_answers_of_no_use_are_asked_for_again(server):
    def third(answer):
        if answer != "hi 3":
            raise Unanswered(f"not the third: {answer}")

    client = make_client(server)
    assert client.complete(client.body("hi"), third) == "hi 3"
    with pytest.raises(Unanswered, match="not the third: hi 7"):
        client.complete(client.body("hi"), third)
    assert client.usage.requests == 7 and client.usage.prompt_tokens == 700


def test_a_refused_request_is_not_repeated_and_a_refused_key_ends_it(server):
    server.respond = lambda text, number: (int(text), "your key sk-secret is bad")
    client = make_client(server)
    with pytest.raises(Unanswered, match="status 400: 'your key <api key> is bad'"):
        client.complete(client.body("400"))
    for error in (EndpointError, RuntimeError, OSError):
        with pytest.raises(error, match="status 401: 'your key <api key> is bad'.*Check `base_url`"):
            client.complete(client.body("401"))
    assert client.usage.requests == 4
    assert "sk-s" not in repr(vars(client).keys()) + repr(client)


def test_templates():
    messages = [{"role": "user", "content": "{answer}"}, {"role": "assistant", "content": "b"}]
    assert fill_template("{prompt}|{answer}|{other}", messages, answer="{prompt}\\1") == (
        "user: {answer}\n\nassistant: b|{prompt}\\1|{other}"
    )
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "x": None}, {"role": "tool"}]
    assert fill_template("{prompt}", call) == 'assistant: {"tool_calls": [{"name": "f"}]}\n\ntool: null'
    with pytest.raises(ValueError, match="messages need `role` and `content`, but one is {'content': 'a'}"):
        fill_template("{prompt}", [{"content": "a"}])
    with pytest.raises(ValueError, match=r"`template` lacks \{answer\}, <x>\."):
        check_template("{prompt}", ("{prompt}", "{answer}", "<x>"))


def test_a_file_that_is_appended_to_loses_no_more_than_its_last_line(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    assert read_jsonl(path, "the log", "row", dict) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": "\\u00', encoding="utf-8")
    assert read_jsonl(path, "the log", "row", lambda row: row["a"]) == [{"a": 1}, {"a": 2}]
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    for line in ("[]", "1", "{}", "oops"):
        path.write_text(f"{json.dumps({'a': 1})}\n{line}\n")
        with pytest.raises(ValueError, match="Line 2 of the log .*log.jsonl is no row: delete it"):
            read_jsonl(path, "the log", "row", lambda row: row.get("a") or row["b"])


def test_a_key_is_sent_without_white_space_and_never_shown(server, monkeypatch):
    for key in (" sk-secret\n", "sk-secret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        client = make_client(server)
        client.complete(client.body("hi"))
        assert server.headers_seen[-1]["Authorization"] == "Bearer sk-secret"
    for key in ("sk-se\ncret", "sk-s\u20accret", "sk-\x00secret", "sk-\ud800"):
        with pytest.raises(ValueError, match="`api_key` .or OPENAI_API_KEY. cannot be sent: character") as error:
            make_client(server, api_key=key)
        assert "sk-" not in str(error.value) and "cret" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    client = make_client(server)
    client.complete(client.body("hi"))
    assert "Authorization" not in server.headers_seen[-1]


def test_an_answer_with_the_key_in_it_is_of_no_use(server):
    server.respond = lambda text, number: f"I was asked with sk-secret {text}"
    client = make_client(server, retries=0)
    with pytest.raises(Unanswered, match="a message that has the API key in it") as error:
        client.complete(client.body("hi"))
    assert "sk-secret" not in str(error.value)
    placeholder = make_client(server, api_key="none")  # which texts may well have in them
    server.respond = lambda text, number: "none of it"
    assert placeholder.complete(placeholder.body("hi")) == "none of it"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/v1", "must begin with http:// or https://"),
        ("http://", "must begin with http:// or https:// and a host"),
        ("http://host:port/v1", "is no address: 'http://host:port/v1'"),
        ("http://host/v1\n", "must begin with"),
        ("http://host/\ud800", "must begin with"),
        ("user:hunter2@host/v1", "got 'host/v1'"),
        ("http://user:hunter2@host:x/v1", "is no address: 'host:x/v1'"),
        ("http://user:hunter2@host/v1", "has a user name, a password, a query or a fragment"),
        ("http://host/v1?key=hunter2", "has a user name, a password, a query"),
        ("http://host/v1#hunter2", "has a user name, a password, a query"),
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(url, message):
    with pytest.raises(ValueError, match=message) as error:
        EndpointClient(url, "m")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_endpoint_that_misbehaves_is_left_in_time(fault, monkeypatch):
    misbehave, message = FAULTS[fault]
    monkeypatch.setattr("trl_tokenreward.utils.chat_endpoint._MOST_BYTES", 2**21)
    monkeypatch.setenv("no_proxy", "*")
    with misbehaving(misbehave) as url:
        client = EndpointClient(url, "m", timeout=1.0, retries=0)
        start = time.monotonic()
        with pytest.raises(Unanswered, match=message):
            client.complete(client.body("hi"))
    assert time.monotonic() - start < 4


def test_a_run_within_an_event_loop_as_a_notebooks(server):
    async def ask():
        client = make_client(server)
        return client.complete(client.body("hi"))

    assert asyncio.run(ask()) == "hi 1"


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, 0, 0)),
        (None, (0, 0, 1)),
        ([1], (0, 0, 1)),
        ({"prompt_tokens": -3, "completion_tokens": 1}, (0, 0, 1)),
        ({"prompt_tokens": "3", "completion_tokens": 1}, (0, 0, 1)),
        ({"prompt_tokens": float("nan"), "completion_tokens": 1}, (0, 0, 1)),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, (0, 0, 1)),
    ],
)
def test_tokens_are_counted_as_far_as_they_can_be(server, usage, counted):
    answer = {"choices": [{"message": {"content": "yes"}}], "usage": usage}
    server.respond = lambda text, number: (200, json.dumps(answer))
    client = make_client(server)
    assert client.complete(client.body("hi")) == "yes"
    assert (client.usage.prompt_tokens, client.usage.completion_tokens, client.usage.without_usage) == counted
