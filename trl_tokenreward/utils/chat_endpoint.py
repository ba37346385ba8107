"""A client of OpenAI-compatible chat endpoints, with retries and usage, and the templates of its requests."""

import http.client
import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .text import quoted_start
from .validation import check_least


Prompt = str | list[dict[str, Any]]

_LONGEST_WAIT = 60.0


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


class EndpointError(ConnectionError, RuntimeError):
    """An error that ends the run, because every other request would fail too."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # The API key would go along to wherever it leads.
    def redirect_request(self, *args: Any) -> None:
        return None


class EndpointClient:
    """Asks an OpenAI-compatible chat-completions endpoint (OpenAI's, vLLM's, llama.cpp's, `transformers serve`, ...).
    Any number of threads may use one client.

    Requests that fail with status 408, 409, 429 or 5xx, at the connection, by a timeout, or with an answer that is of
    no use are repeated after `backoff * 2**n` seconds, or what `Retry-After` asks for (a minute at most). Status 401,
    403, 404 and redirects are an [`EndpointError`]: every other request would fare alike.

    Args:
        base_url (`str`):
            Such as `"http://localhost:8000/v1"`.
        model (`str`):
            The endpoint's name of the model.
        api_key (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`; without either none is sent. It is never logged.
        settings (`dict`, *optional*):
            Further fields of every request.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds that the endpoint may be silent.
        retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first repetition.
        prices (`tuple[float, float]`, *optional*):
            Of a million prompt tokens and of a million completion tokens, for [`~EndpointClient.cost`].
        usage ([`EndpointUsage`], *optional*):
            What to count in.

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
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"`base_url` must begin with http:// or https://, got {base_url!r}.")
        if {"model", "messages", "stream"} & set(settings or {}):
            raise ValueError("`settings` cannot have `model`, `messages` or `stream`: these are set or read here.")
        check_least(retries=(retries, 0), backoff=(backoff, 0))
        if timeout <= 0:
            raise ValueError(f"`timeout` must be above 0 seconds, got {timeout}.")
        self.url, self.model, self.settings = base_url.rstrip("/") + "/chat/completions", model, dict(settings or {})
        self.timeout, self.retries, self.backoff, self.prices = timeout, retries, backoff, prices
        self.usage = EndpointUsage() if usage is None else usage
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._lock = threading.Lock()

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
        """
        for attempt in range(self.retries + 1):
            try:
                answer = self._post(body)
                check(answer)
                return answer
            except Unanswered as problem:
                if problem.wait is None or attempt == self.retries:
                    raise
                time.sleep(min(max(problem.wait, self.backoff * 2**attempt), _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        with self._lock:
            self.usage.requests += 1
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise self._http_problem(error) from error
        except (OSError, http.client.HTTPException) as error:  # timeouts too
            raise Unanswered(f"{type(error).__name__} at {self.url}: {error}") from error
        try:
            answer = json.loads(content)
            usage = answer.get("usage") or {}
            with self._lock:
                self.usage.prompt_tokens += usage.get("prompt_tokens") or 0
                self.usage.completion_tokens += usage.get("completion_tokens") or 0
                self.usage.without_usage += not usage
            text = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Unanswered(f"{self.url} sent no chat completion, but {self._quote(content)}") from error
        if not isinstance(text, str):
            raise Unanswered(f"{self.url} sent a message without text: {self._quote(content)}")
        return text

    def _quote(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        # Some endpoints say which key they refuse.
        return quoted_start(text.replace(self._api_key, "<api key>") if self._api_key else text)

    def _http_problem(self, error: urllib.error.HTTPError) -> Exception:
        try:
            content = error.read()
        except (OSError, http.client.HTTPException):
            content = b""
        problem = f"{self.url} answered with status {error.code}: {self._quote(content)}"
        if error.code in (408, 409, 429) or error.code >= 500:
            asked = error.headers.get("Retry-After", "")
            return Unanswered(problem, float(asked) if asked.isdecimal() else 0.0)
        if error.code in (401, 403, 404) or error.code < 400:
            return EndpointError(f"{problem}. Check `base_url`, `model` and `api_key` (or OPENAI_API_KEY).")
        return Unanswered(problem, wait=None)


def check_template(template: str, needed: Sequence[str]) -> None:
    """Raises a `ValueError` that names what of `needed` the template lacks."""
    missing = [part for part in needed if part not in template]
    if missing:
        raise ValueError(f"`template` lacks {', '.join(missing)}.")


def fill_template(template: str, prompt: Prompt, **fields: str) -> str:
    """The template with `{prompt}` and the other fields filled in; messages are written one after the other."""
    if not isinstance(prompt, str):
        prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    fields["prompt"] = prompt
    # In one pass, so that braces in a text stay what they are.
    return re.sub(rf"\{{({'|'.join(fields)})\}}", lambda match: fields[match[1]], template)
