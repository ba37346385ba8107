"""The web page on which people minimally edit answers, and the server that it is part of. What is decided is
[`~annotation.results`]'s affair; here are the requests, and who may make them."""

import hmac
import json
import secrets
import socket
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import uvicorn
from datasets import Dataset
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from .results import is_loopback
from .store import AnnotationStore, OtherTab, Refused, annotator_name


LEAST_PASSWORD = 8

_PAGE = Path(__file__).parent / "static"
_OPEN_FILES = ("page.css", "login.js", "icon.svg")  # without a session
_COOKIE = "trl-tokenreward-session"
_MOST_BYTES = 4 * 2**20
_MOST_GUESSES, _GUESS_SECONDS = 5, 60.0
_HEADERS = {
    # Nothing but the page's own files is loaded or run, whatever the texts say.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(dataset: Dataset, output: str | Path, *, host: str, port: int, password: str | None, **kwargs: Any) -> None:
    """[`annotate_dataset`], which says more."""
    _check_password(host, password)
    store = AnnotationStore(dataset, output, on_decision=_say, **kwargs)
    try:
        with listen(host, port) as listener:
            for line in _greeting(store, host, listener.getsockname()[1], password):
                _say(line)
            config = uvicorn.Config(make_app(store, password), log_level="warning", server_header=False)
            uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has ended what was under way, and raises it again
        pass
    finally:
        store.close()


def _say(line: str) -> None:
    print(line, flush=True)


def _greeting(store: AnnotationStore, host: str, port: int, password: str | None) -> list[str]:
    rows = len(store.tasks) + store.unfit.total()
    lines = [f"{len(store.tasks)} of {rows} rows can be annotated."]
    lines += [f"{count} cannot: {reason}." for reason, count in store.about()["unfit"].items()]
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    lines.append(f"Open http://{name}:{port} in a browser; Ctrl+C here ends it, and the same command goes on.")
    if password is not None:
        lines.append("It asks for the password. This is plain http: others on the network could read along.")
    return lines


def _check_password(host: str, password: str | None) -> None:
    if password is None and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, so a password is needed: set TRL_TOKENREWARD_PASSWORD (in Python, "
            "`password`), or listen on 127.0.0.1 and let others in through an ssh tunnel."
        )
    if password is not None and len(password) < LEAST_PASSWORD:
        raise ValueError(f"The password must have at least {LEAST_PASSWORD} characters.")


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{host}, port {port}, cannot be listened on ({error.strerror}): give another --port.") from error


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise _HttpError(400, f"{url!r} is no address.") from error


class _HttpError(Exception):
    def __init__(self, status: int, problem: str):
        super().__init__(problem)
        self.status = status


class _Guard:
    """Who may ask for what: the password, if there is one, and sessions of those who gave it; else this machine alone."""

    def __init__(self, password: str | None):
        self._password = password
        self._sessions: set[str] = set()
        self._guesses: dict[str, deque[float]] = defaultdict(deque)

    def check_site(self, request: Request) -> None:
        """Refuses what another site has a browser ask for."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        # A name that was made to point here (DNS rebinding) would make the other site's page this one's origin. Where there
        # is a password, it would have no session.
        if self._password is None and not is_loopback(_split(f"//{host}").hostname or ""):
            raise _HttpError(403, "Only this machine's own names are answered to.")
        if origin is not None and _split(origin).netloc != host:
            raise _HttpError(403, "The request comes from another site.")

    def knows(self, request: Request) -> bool:
        return self._password is None or request.cookies.get(_COOKIE) in self._sessions

    def log_in(self, request: Request, guess: Any) -> str:
        """The new session, if the password is right."""
        if self._password is None:
            raise _HttpError(404, "There is no password.")
        now, client = time.monotonic(), request.client.host if request.client else ""
        for other, times in [*self._guesses.items()]:
            while times and times[0] < now - _GUESS_SECONDS:
                times.popleft()
            if not times:
                del self._guesses[other]
        if len(self._guesses.get(client, ())) >= _MOST_GUESSES:
            raise _HttpError(429, "Too many wrong passwords: wait a minute.")
        if not isinstance(guess, str) or not hmac.compare_digest(
            guess.encode("utf-8", "surrogatepass"), self._password.encode("utf-8", "surrogatepass")
        ):
            self._guesses[client].append(now)
            raise _HttpError(401, "That is not the password.")
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        return session


def make_app(store: AnnotationStore, password: str | None = None) -> Starlette:
    """The page and what it asks for.

    Args:
        store ([`~annotation.store.AnnotationStore`]):
            What it writes to.
        password (`str`, *optional*):
            Without one, only requests to this machine's own names are answered.
    """
    guard = _Guard(password)

    def answer(handle: Callable[[Request], Awaitable[Response]], public: bool = False) -> Callable[..., Any]:
        async def endpoint(request: Request) -> Response:
            try:
                guard.check_site(request)
                if not public and not guard.knows(request):
                    raise _HttpError(401, "Log in first.")
                response = await handle(request)
            except OtherTab as problem:
                response = JSONResponse({"error": str(problem), "other_tab": True}, 409)
            except Refused as problem:
                response = JSONResponse({"error": str(problem)}, 422)
            except _HttpError as problem:
                response = JSONResponse({"error": str(problem)}, problem.status)
            except OSError as problem:  # the disk
                response = JSONResponse({"error": f"It could not be written down: {problem}"}, 500)
            response.headers.update(_HEADERS)
            return response

        return endpoint

    async def page(request: Request) -> Response:
        if not guard.knows(request):
            return RedirectResponse("/login", 303)
        return FileResponse(_PAGE / "index.html")

    async def file(request: Request) -> Response:
        return FileResponse(_PAGE / request.url.path.rpartition("/")[2])

    async def login_page(request: Request) -> Response:
        return RedirectResponse("/", 303) if guard.knows(request) else FileResponse(_PAGE / "login.html")

    async def log_in(request: Request) -> Response:
        session = guard.log_in(request, (await _body(request)).get("password"))
        response = JSONResponse({})
        response.set_cookie(_COOKIE, session, httponly=True, samesite="strict")
        return response

    def act(action: str) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            body = await _body(request)
            return JSONResponse(await run_in_threadpool(_act, store, action, body))

        return handle

    routes = [
        Route("/", answer(page, public=True)),
        Route("/login", answer(login_page, public=True)),
        Route("/api/login", answer(log_in, public=True), methods=["POST"]),
        Route("/page.js", answer(file)),
        *(Route(f"/{name}", answer(file, public=True)) for name in _OPEN_FILES),
        *(Route(f"/api/{action}", answer(act(action)), methods=["POST"]) for action in _ACTIONS),
    ]
    return Starlette(routes=routes)


async def _body(request: Request) -> dict[str, Any]:
    """A JSON object. Another site's page cannot send this content type unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _HttpError(415, "The request must be application/json.")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BYTES:
            raise _HttpError(413, f"The request is longer than {_MOST_BYTES} bytes.")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise _HttpError(400, f"The request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise _HttpError(400, "The request must be a JSON object.")
    return body


# What each action takes, besides the annotator: names, and types of values.
_ROW: dict[str, Any] = {"tab": str, "row": int}
_ACTIONS: dict[str, dict[str, Any]] = {
    "about": {},
    "show": {"tab": str, "row": int | None},
    "check": {**_ROW, "text": str, "take": bool},
    "save": {**_ROW, "text": str},
    "skip": {**_ROW, "reason": str, "detail": str, "text": str},
    "leave": {},
}


def _act(store: AnnotationStore, action: str, body: dict[str, Any]) -> Any:
    kinds = _ACTIONS[action] if action == "about" else {"annotator": str, **_ACTIONS[action]}
    for name, kind in kinds.items():
        if name not in body or not isinstance(body[name], kind) or (kind is int and isinstance(body[name], bool)):
            raise _HttpError(400, f"`{name}` is missing or of another type.")
    if extra := body.keys() - kinds.keys():
        raise _HttpError(400, f"`{min(extra)}` is nothing that {action} takes.")
    if "annotator" in kinds:
        body["annotator"] = annotator_name(body["annotator"])
    return getattr(store, action)(**body)
