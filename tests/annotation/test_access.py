"""Access: a part of the tests of annotation."""

import http.client
import socket
import time

import pytest

from annotating import opened, pairs, serving
from annotation_cases import ANSWERS, ask


pytestmark = pytest.mark.any_trl


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
        ("login", {"password": "x" * 5000}, 413, "longer than 4096 bytes"),
        ("leave", {"annotator": "a\ud800"}, 400, "The request has half of a character"),
        ("leave", {"\ud800": "a"}, 400, "The request has half of a character"),
        ("show", {"annotator": "ada", "tab": "t", "row": True}, 400, "`row` is missing or of another type"),
        ("show", {"annotator": "ada", "tab": "t" * 101, "row": None}, 422, "A tab's name has at most 100"),
        ("about", {"annotator": "ada"}, 400, "`annotator` is nothing that about takes"),
    ],
)
def test_bad_requests_are_told_so(tmp_path, action, body, status, problem):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        answer = ask(f"{url}/api/{action}", body)
        assert answer[0] == status and problem in answer[1]["error"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "no JSON: it is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "no JSON: it is nested too deeply"),
        (b'{"annotator": "\xff"}', "no JSON: "),
        (b"\x00\xff\xfe", "no JSON: "),
        (b"", "no JSON: "),
        (b'{"annotator": ' + b"9" * 5000 + b"}", "no JSON: "),
    ],
)
def test_bodies_that_are_no_json(tmp_path, data, problem):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        answer = ask(f"{url}/api/leave", headers={"Content-Type": "application/json"}, data=data)
        assert answer[0] == 400 and problem in answer[1]["error"]


def test_a_text_that_would_take_long_is_refused_at_once(tmp_path):
    row = {"annotator": "ada", "tab": "t", "row": 0}
    with opened(pairs("bad " * 1000), tmp_path) as store, serving(store) as url:
        store.show("ada", "t")
        start = time.monotonic()
        for action, more in (("check", {"take": False}), ("save", {}), ("skip", {"reason": "unclear", "detail": ""})):
            status, answer, _ = ask(f"{url}/api/{action}", {**row, **more, "text": "a b " * 2**19})
            assert status == 422 and "The text has 2097152 characters; it may have 16000 here" in answer["error"]
        assert time.monotonic() - start < 3
        status, answer, _ = ask(f"{url}/api/skip", {**row, "reason": "other", "detail": "x" * 1001, "text": ""})
        assert status == 422 and "The reason has 1001 characters; it may have 1000" in answer["error"]
        assert ask(f"{url}/api/check", {**row, "take": False, "text": "bad " * 4000})[0] == 200  # drafts may be long


@pytest.mark.parametrize("path", ["/api/leave", "/api/login", "/api/nothing", "/", "/page.css"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_an_endless_body_is_not_read_on(tmp_path, path, kind):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as client:
            client.sendall(head.encode())
            sent = 0
            with pytest.raises(ConnectionError):  # the server has hung up
                while sent < 2**28:
                    client.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
                    sent += 2**16
        assert sent < 2**26 and ask(f"{url}/api/about", {})[0] == 200


def test_a_body_that_never_ends_is_waited_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_tokenreward.annotation.server._BODY_SECONDS", 0.2)
    head = (
        b"POST /api/leave HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as client:
            client.sendall(head)
            answer = b""
            while part := client.recv(2**16):  # to the end: the server hangs up
                answer += part
    assert answer.startswith(b"HTTP/1.1 408 ") and b"took longer than 0 seconds" in answer


def test_a_connection_stays_open_from_request_to_request(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store) as url:
        connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=10)
        for method, path, body in (("GET", "/", None), ("POST", "/api/about", b"{}"), ("GET", "/page.css", None)):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200 and response.headers["Connection"] is None
        connection.close()


def test_a_header_does_not_lift_the_limit_on_guesses(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store, "correct horse") as url:
        statuses = [
            ask(f"{url}/api/login", {"password": "wrong horse"}, {"X-Forwarded-For": f"10.0.0.{i}"})[0]
            for i in range(7)
        ]
    assert statuses == [401] * 5 + [429] * 2


def test_two_servers_of_one_host_have_cookies_of_their_own(tmp_path):
    names = []
    for folder in ("one", "two"):
        with opened(pairs(*ANSWERS), tmp_path / folder) as store, serving(store, "correct horse") as url:
            _, _, headers = ask(f"{url}/api/login", {"password": "correct horse"})
            names.append(headers["Set-Cookie"].partition("=")[0])
    assert names[0] != names[1]


def test_a_password(tmp_path):
    with opened(pairs(*ANSWERS), tmp_path) as store, serving(store, "correct horse") as url:
        assert ask(f"{url}/page.js")[0] == 401
        assert "Password" in ask(url)[1]  # sent on to /login
        assert ask(f"{url}/page.css")[0] == ask(f"{url}/edit_colours.css")[0] == 200
        assert ask(f"{url}/api/about", {})[0] == 401
        assert ask(f"{url}/api/about", {}, {"Cookie": f"trl-tokenreward-session-{store.id}=guess"})[0] == 401
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
