"""The client of chat-completions endpoints, on a local HTTP server, and the templates and files that go with it. More
of it, such as what is asked again and when, is in test_judges.py."""

import json

import pytest

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
