"""HTTP routes of the annotation server. [`~annotation.access`] controls access, [`~annotation.store`] stores data."""

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from datasets import Dataset
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ..views.html import EDIT_COLOURS
from .access import COOKIE, Guard, HttpError, check_password
from .store import AnnotationStore, OtherTab, Refused, annotator_name


_PAGE = Path(__file__).parent / "static"
_FILES = {name: _PAGE / name for name in ("page.css", "page.js", "login.js", "icon.svg")}
_FILES[EDIT_COLOURS.name] = EDIT_COLOURS


_MOST_BYTES = 4 * 2**20


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
    store = AnnotationStore(dataset, output, on_decision=_say, **kwargs)
    try:
        with listen(host, port) as listener:
            for line in _greeting(store, host, listener.getsockname()[1], password):
                _say(line)
            config = uvicorn.Config(make_app(store, password), log_level="warning", server_header=False)
            uvicorn.Server(config).run(sockets=[listener])
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


def make_app(store: AnnotationStore, password: str | None = None) -> Starlette:
    """The application: the page and its API.

    Args:
        store ([`~annotation.store.AnnotationStore`]):
            Reads and writes the annotations.
        password (`str`, *optional*):
            Without one, only requests to this machine's own names are answered.
    """
    guard = Guard(password)

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
        session = guard.log_in(request, (await _body(request)).get("password"))
        response = JSONResponse({})
        response.set_cookie(COOKIE, session, httponly=True, samesite="strict")
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
    return Starlette(routes=routes)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. A page of another site cannot send this content type without CORS permission."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HttpError(415, "The request must be application/json.")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BYTES:
            raise HttpError(413, f"The request is longer than {_MOST_BYTES} bytes.")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise HttpError(400, f"The request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise HttpError(400, "The request must be a JSON object.")
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
            raise HttpError(400, f"`{name}` is missing or of another type.")
    if extra := body.keys() - kinds.keys():
        raise HttpError(400, f"`{min(extra)}` is nothing that {action} takes.")
    if "annotator" in kinds:
        body["annotator"] = annotator_name(body["annotator"])
    return getattr(store, action)(**body)
