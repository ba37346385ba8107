"""A client of OpenAI-compatible chat endpoints, with retries and usage, and the templates of its requests."""

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from .jsonl import parse_json
from .messages import messages_text
from .text import quoted_start, unicode_problem
from .validation import check_least, check_positive


Prompt = str | list[dict[str, Any]]

_LONGEST_WAIT = 60.0
_STOP_AFTER = 0.1  # seconds, at most, until a request ends that is no longer wanted
_MOST_BYTES = 16 * 2**20  # of an answer: more than a hundred thousand tokens, with their log-probabilities
_LEAST_SECRET = 8  # characters; a shorter key, such as "none", is a placeholder that answers may well have in them


@dataclass
class EndpointUsage:
    """Requests and tokens used so far. Tokens are those that the endpoint counted, of every answer that came back;
    `without_usage` answers came without a count. Retries are requests too."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0

    def cost(self, prices: tuple[float, float] | None) -> float | None:
        """What the tokens have cost, given the prices of a million prompt tokens and of a million completion tokens;
        `None` without prices."""
        if prices is None:
            return None
        return (prices[0] * self.prompt_tokens + prices[1] * self.completion_tokens) / 1e6


class Unanswered(Exception):
    """Why a request has no answer that is of use, and how long to wait before it is asked again; `None`: never
    again."""

    def __init__(self, problem: str, wait: float | None = 0.0):
        super().__init__(problem)
        self.wait = wait


class Stopped(Exception):
    """A request was given up, because the run that it belonged to has failed or was interrupted."""


class EndpointError(ConnectionError, RuntimeError):
    """An error that ends the run, because every other request would fail too."""


class _Response(NamedTuple):
    status: int
    retry_after: str
    content: bytes


class EndpointClient:
    """Asks an OpenAI-compatible chat-completions endpoint (OpenAI's, vLLM's, llama.cpp's, `transformers serve`, ...).
    Any number of threads may use one client.

    Requests that fail with status 408, 409, 429 or 5xx, at the connection, by a timeout, or with an answer that is of
    no use or has more than 16 MiB are repeated after `backoff * 2**n` seconds, or what `Retry-After` asks for (a
    minute at most). Status 401, 403, 404 and redirects are an [`EndpointError`]: every other request would fare alike.

    Args:
        base_url (`str`):
            Such as `"http://localhost:8000/v1"`, without user name, password or query.
        model (`str`):
            The endpoint's name of the model.
        api_key (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`; without either none is sent. White space around it
            is no part of it. It is never logged, and an answer that has it in it is of no use.
        settings (`dict`, *optional*):
            Further fields of every request.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds that a request may take, from the connection to the end of the answer.
        retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first repetition.
        prices (`tuple[float, float]`, *optional*):
            Of a million prompt tokens and of a million completion tokens, for [`~EndpointClient.cost`].
        usage ([`EndpointUsage`], *optional*):
            What to count in.

    Attributes:
        stopped (`threading.Event`):
            While it is set, requests end at once, those under way too.

    Raises:
        `ValueError`: for a bad argument.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        settings: dict[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        prices: tuple[float, float] | None = None,
        usage: EndpointUsage | None = None,
    ):
        _check_url(base_url)
        if {"model", "messages", "stream"} & set(settings or {}):
            raise ValueError("`settings` cannot have `model`, `messages` or `stream`: these are set or read here.")
        check_least(retries=(retries, 0), backoff=(backoff, 0))
        check_positive(timeout=timeout)
        for price in prices or ():
            check_least(prices=(price, 0))
        self.url, self.model, self.settings = base_url.rstrip("/") + "/chat/completions", model, dict(settings or {})
        self.timeout, self.retries, self.backoff, self.prices = timeout, retries, backoff, prices
        self.usage = EndpointUsage() if usage is None else usage
        self._api_key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY"))
        self._ssl = httpx2.create_ssl_context()
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    @property
    def cost(self) -> float | None:
        """What the tokens so far have cost, in the currency of `prices`; `None` without prices."""
        return self.usage.cost(self.prices)

    def body(self, text: str, **more: Any) -> dict[str, Any]:
        """The request with `text` as the user's message; `more` are fields of this request alone."""
        return {**self.settings, **more, "model": self.model, "messages": [{"role": "user", "content": text}]}

    def complete(self, body: dict[str, Any], check: Callable[[str], Any] = str) -> str:
        """The text of the endpoint's answer.

        Args:
            body (`dict`):
                See [`~EndpointClient.body`].
            check (`Callable`, *optional*):
                Called with the answer; raises [`Unanswered`] if it is of no use and is to be asked for again.

        Raises:
            `Unanswered`: if there is no such answer after all repetitions, or the request is refused.
            `EndpointError`: if the endpoint refuses us.
            `Stopped`: if `stopped` is set.
        """
        for attempt in range(self.retries + 1):
            if self.stopped.is_set():
                raise Stopped
            try:
                answer = self._post(body)
                check(answer)
                return answer
            except Unanswered as problem:
                if problem.wait is None or attempt == self.retries:
                    raise
                self.stopped.wait(min(max(problem.wait, self.backoff * 2**attempt), _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: dict[str, Any]) -> str:
        data = json.dumps(body).encode()
        with self._lock:
            self.usage.requests += 1
        try:
            # In a thread of its own, because this one may run an event loop already, as that of a notebook does.
            with ThreadPoolExecutor(1) as thread:
                response = thread.submit(asyncio.run, self._exchange(data)).result()
        except TimeoutError as error:
            raise Unanswered(f"{self.url} sent no whole answer within {self.timeout:g} seconds") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unanswered(f"{type(error).__name__} at {self.url}: {error}") from error
        if response.status >= 300:
            raise self._http_problem(response)
        try:
            answer = parse_json(response.content)
            self._count(answer.get("usage"))
            text = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Unanswered(f"{self.url} sent no chat completion, but {self._quote(response.content)}") from error
        if not isinstance(text, str):
            raise Unanswered(f"{self.url} sent a message without text: {self._quote(response.content)}")
        if self._api_key and len(self._api_key) >= _LEAST_SECRET and self._api_key in text:
            raise Unanswered(f"{self.url} sent a message that has the API key in it")
        return text

    async def _exchange(self, data: bytes) -> _Response:
        request = asyncio.create_task(self._send(data))
        while not (await asyncio.wait({request}, timeout=_STOP_AFTER))[0]:
            if self.stopped.is_set():
                raise Stopped
        return request.result()

    async def _send(self, data: bytes) -> _Response:
        """Sends a request. All of it has to happen within `timeout`: an endpoint that sends a byte now and then, or
        nothing but `100 Continue`, is never silent for long."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        content = bytearray()
        # Redirects are not followed, for the API key would go along to wherever they lead.
        client = httpx2.AsyncClient(timeout=None, follow_redirects=False, verify=self._ssl)
        async with asyncio.timeout(self.timeout), client:
            async with client.stream("POST", self.url, content=data, headers=headers) as response:
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > _MOST_BYTES:
                        raise Unanswered(f"{self.url} sent more than {_MOST_BYTES} bytes")
                return _Response(response.status_code, response.headers.get("Retry-After", ""), bytes(content))

    def _count(self, usage: Any) -> None:
        """Counts tokens, as far as the endpoint sent numbers of them that can be."""
        counted = usage if isinstance(usage, dict) else {}
        prompt, completion = (counted.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
        if not all(type(count) is int and 0 <= count < 2**53 for count in (prompt, completion)):
            counted, prompt, completion = {}, 0, 0
        with self._lock:
            self.usage.prompt_tokens += prompt
            self.usage.completion_tokens += completion
            self.usage.without_usage += not counted

    def _quote(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        # Some endpoints say which key they refuse.
        return quoted_start(text.replace(self._api_key, "<api key>") if self._api_key else text)

    def _http_problem(self, response: _Response) -> Exception:
        status, asked = response.status, response.retry_after
        problem = f"{self.url} answered with status {status}: {self._quote(response.content)}"
        if status in (408, 409, 429) or status >= 500:
            return Unanswered(problem, float(asked) if asked.isdecimal() else 0.0)
        if status in (401, 403, 404) or status < 400:
            return EndpointError(f"{problem}. Check `base_url`, `model` and `api_key` (or OPENAI_API_KEY).")
        return Unanswered(problem, wait=None)


def _check_url(url: str) -> None:
    shown = url.rpartition("@")[2]  # what stands before it is a user name and a password
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ValueError(f"`base_url` is no address: {shown!r}.") from error
    if not url.startswith(("http://", "https://")) or not has_host or not url.isprintable() or unicode_problem(url):
        raise ValueError(f"`base_url` must begin with http:// or https:// and a host, got {shown!r}.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "`base_url` has a user name, a password, a query or a fragment in it, and it stands in logs and data "
            "cards. Give the address alone, and the key as `api_key` or in OPENAI_API_KEY."
        )


def _checked_key(key: str | None) -> str | None:
    """The key without the white space around it. What it is stands in no error."""
    key = (key or "").strip()
    for place, char in enumerate(key):
        if not (char.isascii() and char.isprintable()):
            raise ValueError(
                f"`api_key` (or OPENAI_API_KEY) cannot be sent: character {place} of it is none of a key's, which are "
                "printable ASCII characters. Copy it again."
            )
    return key or None


def check_template(template: str, needed: Sequence[str]) -> None:
    """Raises a `ValueError` that names what of `needed` the template lacks."""
    missing = [part for part in needed if part not in template]
    if missing:
        raise ValueError(f"`template` lacks {', '.join(missing)}.")


def fill_template(template: str, prompt: Prompt, **fields: str) -> str:
    """The template with `{prompt}` and the other fields filled in; messages are written one after the other."""
    if not isinstance(prompt, str):
        prompt = messages_text(prompt)
    fields["prompt"] = prompt
    # In one pass, so that braces in a text stay what they are.
    return re.sub(rf"\{{({'|'.join(fields)})\}}", lambda match: fields[match[1]], template)
