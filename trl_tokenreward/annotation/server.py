"""HTTP routes of the annotation server. [`~annotation.access`] controls access, [`~annotation.store`] stores data."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from datasets import Dataset
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..utils.jsonl import parse_json
from ..utils.text import unicode_problem
from ..views.html import EDIT_COLOURS
from .access import Guard, HttpError, check_password
from .store import AnnotationStore, OtherTab, Refused, annotator_name


_PAGE = Path(__file__).parent / "static"
_FILES = {name: _PAGE / name for name in ("page.css", "page.js", "login.js", "icon.svg")}
_FILES[EDIT_COLOURS.name] = EDIT_COLOURS


# What a request's body may have, and how long it may take to come. Who has not logged in yet sends a password only.
_MOST_BYTES, _MOST_BYTES_BEFORE_LOGIN, _BODY_SECONDS = 4 * 2**20, 4096, 60.0


_HEADERS = {
    # Browsers load and run only the page's own files, even if a text contains HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(dataset: Dataset, output: str | Path, *, host: str, port: int, password: str | None, **kwargs: Any) -> None:
    """Runs the server until it is interrupted, see [`annotate_dataset`]."""
    check_password(host, password)
    if not 0 <= port < 2**16:
        raise ValueError(f"`port` must be from 0 to {2**16 - 1}, got {port}.")
    store = AnnotationStore(dataset, output, on_decision=_say, **kwargs)
    try:
        with listen(host, port) as listener:
            for line in _greeting(store, host, listener.getsockname()[1], password):
                _say(line)
            make_server(store, password).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has shut down cleanly and raises it again
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
    lines.append(f"Open http://{name}:{port} in a browser; Ctrl+C here ends it, and the same command resumes.")
    if password is not None:
        lines.append("It asks for the password. This is plain http: others on the network could read along.")
    return lines


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{host}, port {port}, cannot be listened on ({error.strerror}): give another --port.") from error


def make_server(store: AnnotationStore, password: str | None = None) -> uvicorn.Server:
    """The HTTP server of [`make_app`]. It does not believe `X-Forwarded-For`, which any client can write: behind a
    proxy, all clients are one to the limit of guesses."""
    app = make_app(store, password)
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, proxy_headers=False, ws="none"))


class _CloseUnread:
    """Closes the connection after the answer to a request whose body was not read to its end. The HTTP server would
    read on, for as long as the client sends."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def receive_part() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def send_part(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self.app(scope, receive_part, send_part)


def make_app(store: AnnotationStore, password: str | None = None) -> ASGIApp:
    """The application: the page and its API.

    Args:
        store ([`~annotation.store.AnnotationStore`]):
            Reads and writes the annotations.
        password (`str`, *optional*):
            Without one, only requests to this machine's own names are answered.
    """
    guard = Guard(password, store.id)

    def answer(handle: Callable[[Request], Awaitable[Response]], public: bool = False) -> Callable[..., Any]:
        async def endpoint(request: Request) -> Response:
            try:
                guard.check_site(request)
                if not public and not guard.knows(request):
                    raise HttpError(401, "Log in first.")
                response = await handle(request)
            except OtherTab as problem:
                response = JSONResponse({"error": str(problem), "other_tab": True}, 409)
            except Refused as problem:
                response = JSONResponse({"error": str(problem)}, 422)
            except HttpError as problem:
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
        return FileResponse(_FILES[request.url.path.rpartition("/")[2]])

    async def login_page(request: Request) -> Response:
        return RedirectResponse("/", 303) if guard.knows(request) else FileResponse(_PAGE / "login.html")

    async def log_in(request: Request) -> Response:
        session = guard.log_in(request, (await _body(request, _MOST_BYTES_BEFORE_LOGIN)).get("password"))
        response = JSONResponse({})
        response.set_cookie(guard.cookie, session, httponly=True, samesite="strict")
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
        *(Route(f"/{name}", answer(file, public=name != "page.js")) for name in _FILES),
        *(Route(f"/api/{action}", answer(act(action)), methods=["POST"]) for action in _ACTIONS),
    ]
    return _CloseUnread(Starlette(routes=routes))


async def _body(request: Request, most: int = _MOST_BYTES) -> dict[str, Any]:
    """The JSON object of a request. A page of another site cannot send this content type without CORS permission."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HttpError(415, "The request must be application/json.")
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise HttpError(413, f"The request is longer than {most} bytes.")
    except TimeoutError as error:
        raise HttpError(408, f"The request took longer than {_BODY_SECONDS:.0f} seconds to come.") from error
    except ClientDisconnect as error:
        raise HttpError(400, "The request ended early.") from error
    try:
        body = parse_json(bytes(data))
    except ValueError as error:
        raise HttpError(400, f"The request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise HttpError(400, "The request must be a JSON object.")
    if problem := unicode_problem(body):
        raise HttpError(400, f"The request {problem}")
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
        is_bool = isinstance(body.get(name), bool)
        if name not in body or not isinstance(body[name], kind) or is_bool != (kind is bool):
            raise HttpError(400, f"`{name}` is missing or of another type.")
    if extra := body.keys() - kinds.keys():
        raise HttpError(400, f"`{min(extra)}` is nothing that {action} takes.")
    if "annotator" in kinds:
        body["annotator"] = annotator_name(body["annotator"])
    return getattr(store, action)(**body)
