"""Access control of the annotation server: password, sessions and the origin of requests."""

import hmac
import secrets
import time
from collections import defaultdict, deque
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request


def is_loopback(host: str) -> bool:
    """True for a host name or IP address that only this machine can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


LEAST_PASSWORD = 8


_MOST_GUESSES, _GUESS_SECONDS = 5, 60.0


def check_password(host: str, password: str | None) -> None:
    if password is None and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, so a password is needed: set TRL_TOKENREWARD_PASSWORD (in "
            "Python, `password`), or listen on 127.0.0.1 and let others in through an ssh tunnel."
        )
    if password is not None and len(password) < LEAST_PASSWORD:
        raise ValueError(f"The password must have at least {LEAST_PASSWORD} characters.")


def split_url(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise HttpError(400, f"{url!r} is no address.") from error


class HttpError(Exception):
    def __init__(self, status: int, problem: str):
        super().__init__(problem)
        self.status = status


class Guard:
    """Checks requests by password and session. Without a password, only requests to this machine's own names pass.

    Args:
        password (`str`, *optional*):
            The password.
        name (`str`):
            Tells the servers of one host apart, of whose ports browsers send each the cookies of all.
    """

    def __init__(self, password: str | None, name: str):
        self._password, self.cookie = password, f"trl-tokenreward-session-{name}"
        self._sessions: set[str] = set()
        self._guesses: dict[str, deque[float]] = defaultdict(deque)

    def check_site(self, request: Request) -> None:
        """Raises [`HttpError`] for requests that another site makes a browser send (CSRF, DNS rebinding)."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        # With DNS rebinding, the name of another site points to this machine, so its page has this server's origin.
        # If there is a password, that page lacks a session anyway.
        if self._password is None and not is_loopback(split_url(f"//{host}").hostname or ""):
            raise HttpError(403, "Only this machine's own names are answered to.")
        if origin is not None and split_url(origin).netloc != host:
            raise HttpError(403, "The request comes from another site.")

    def knows(self, request: Request) -> bool:
        return self._password is None or request.cookies.get(self.cookie) in self._sessions

    def log_in(self, request: Request, guess: Any) -> str:
        """Checks a password and returns the id of a new session. Five wrong guesses a minute are allowed per client."""
        if self._password is None:
            raise HttpError(404, "There is no password.")
        now, client = time.monotonic(), request.client.host if request.client else ""
        for other, times in [*self._guesses.items()]:
            while times and times[0] < now - _GUESS_SECONDS:
                times.popleft()
            if not times:
                del self._guesses[other]
        if len(self._guesses.get(client, ())) >= _MOST_GUESSES:
            raise HttpError(429, "Too many wrong passwords: wait a minute.")
        if not isinstance(guess, str) or not hmac.compare_digest(
            guess.encode("utf-8", "surrogatepass"), self._password.encode("utf-8", "surrogatepass")
        ):
            self._guesses[client].append(now)
            raise HttpError(401, "That is not the password.")
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        return session
