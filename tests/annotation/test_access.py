"""Access: a part of the tests of annotation."""

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
