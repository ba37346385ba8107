"""Judges: which of two answers to a prompt is the better one, said by a reward model, a function or a language model."""

import hashlib
import http.client
import json
import math
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .modeling import evaluation_mode
from .packing import groups_by_length, without_peft
from .rewards import check_scorer, has_sequence_score, prefix_scores
from .statistics import pairwise_outcomes


logger = logging.get_logger(__name__)

Prompt = str | list[dict[str, Any]]


class Judge(Protocol):
    """What says which of two answers is better. Any function of this form is one.

    It is called with prompts (texts, or messages where the data set has messages) and two lists of answers, and returns for
    each prompt 1 where A's answer is better, 0 where B's is, 0.5 for a tie. A number between is the probability that A's is
    better, and NaN says that there is no verdict.
    """

    def __call__(self, prompts: list[Prompt], answers_a: list[str], answers_b: list[str]) -> list[float]: ...


class ScoringJudge:
    """A judge that scores every answer by itself; the higher score wins, equal scores are a tie.

    Args:
        function (`Callable`):
            Takes prompts and answers, returns one float for each answer.
    """

    def __init__(self, function: Callable[[list[Prompt], list[str]], list[float]]):
        self.scores = function

    def __call__(self, prompts: list[Prompt], answers_a: list[str], answers_b: list[str]) -> list[float]:
        return pairwise_outcomes(self.scores(prompts, answers_a), self.scores(prompts, answers_b))


class RewardModelJudge(ScoringJudge):
    """A judge that compares the sequence scores of a reward model.

    It reads what reward models are trained on: prompt, answer and EOS; or, where the prompt is messages, these and the
    answer in the tokenizer's chat template. The score is read at the last token.

    Args:
        model ([`TokenRewardModel`] or [`~transformers.PreTrainedModel`]):
            Or a decoder's sequence classifier with one label. For a model of another kind, write a function for
            [`ScoringJudge`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's.
        batch_size (`int`, *optional*, defaults to `8`):
            Most texts in one forward pass.

    Raises:
        `TypeError`: if the model is of another kind.
        `ValueError`: if it has more than one label; when called, if a text has no tokens or more than the model reads.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8):
        check_scorer(model, "model")
        if not has_sequence_score(model):
            raise TypeError("`model` scores tokens only: pass a TokenRewardModel or a sequence classifier.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @torch.no_grad()
    def scores(self, prompts: list[Prompt], answers: list[str]) -> list[float]:
        """The score of each answer."""
        ids = [self._encode(*pair) for pair in zip(prompts, answers, strict=True)]
        limit = getattr(without_peft(self.model).config.get_text_config(), "max_position_embeddings", None)
        for index, row in enumerate(ids):
            if not row or (limit is not None and len(row) > limit):
                raise ValueError(f"Prompt and answer {index} have {len(row)} tokens; the judge reads 1 to {limit}.")
        lengths, device = torch.tensor([len(row) for row in ids]), next(self.model.parameters()).device
        scores = torch.zeros(len(ids))
        with evaluation_mode(self.model):
            for group in groups_by_length(lengths, self.batch_size):
                rows = [torch.tensor(ids[index]) for index in group.tolist()]
                mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
                by_column = prefix_scores(
                    self.model, nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), mask
                )
                scores[group] = by_column.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1).cpu()
        return scores.tolist()

    def _encode(self, prompt: Prompt, answer: str) -> list[int]:
        if isinstance(prompt, str):
            eos = self.tokenizer.eos_token or ""
            return self.tokenizer(prompt + answer + ("" if eos and answer.endswith(eos) else eos))["input_ids"]
        messages = [*prompt, {"role": "assistant", "content": answer}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


DEFAULT_TEMPLATE = """\
Compare two answers to the same prompt. Which one is more helpful, correct and harmless? Neither its length nor the order \
in which the two stand makes an answer better.

<prompt>
{prompt}
</prompt>

<answer_a>
{answer_a}
</answer_a>

<answer_b>
{answer_b}
</answer_b>

Give your reasons in one or two sentences. Then write your verdict in a line of its own: [[A]] if answer A is better, \
[[B]] if answer B is better, [[TIE]] if neither is."""
_FIELD = re.compile(r"\{(prompt|answer_a|answer_b)\}")
_VERDICT = re.compile(r"\[\[(A|B|TIE)\]\]")
_VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}
_LONGEST_WAIT = 60.0


@dataclass
class JudgeUsage:
    """What an [`EndpointJudge`] has used so far. Tokens are those that the endpoint counted, of every answer that came
    back; `without_usage` answers came without a count. Retries are requests too."""

    requests: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    failed_pairs: int = 0


class _NoVerdict(Exception):
    """What went wrong with a request, and how long to wait before it is asked again; `None`: never again."""

    def __init__(self, problem: str, wait: float | None = 0.0):
        super().__init__(problem)
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # The API key would go along to wherever it leads.
    def redirect_request(self, *args: Any) -> None:
        return None


class EndpointJudge:
    """A language model behind an OpenAI-compatible chat-completions endpoint (OpenAI's, vLLM's, llama.cpp's, ...) as judge.

    Each pair is asked for in both orders, since models prefer the one or the other position (Zheng et al. 2023, arXiv
    2306.05685); where the two verdicts disagree it is a tie. Equal answers are a tie that nobody is asked for.

    Requests that fail with status 408, 409, 429 or 5xx, at the connection, by a timeout, or with an answer that has no
    verdict are repeated after `backoff * 2**n` seconds, or what `Retry-After` asks for (a minute at most). A pair that still
    has no verdict, or whose request is refused, gets NaN and is counted in `usage.failed_pairs`. Status 401, 403, 404 and
    redirects end it at once: every other request would fare alike.

    Args:
        base_url (`str`):
            Such as `"http://localhost:8000/v1"`.
        model (`str`):
            The endpoint's name of the model.
        api_key (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`; without either none is sent. It is neither logged nor
            cached.
        template (`str`, *optional*):
            The judge's prompt, with `{prompt}`, `{answer_a}` and `{answer_b}`. It must ask for the verdict `[[A]]`, `[[B]]`
            or `[[TIE]]`; of several in an answer the last one counts.
        settings (`dict`, *optional*, defaults to `{"temperature": 0.0}`):
            Further fields of the request.
        cache (`str` or `Path`, *optional*):
            A JSON Lines file. Answers are appended to it as they come and not asked for again, by this or a later run with
            the same endpoint and request.
        concurrency (`int`, *optional*, defaults to `8`):
            Most requests at a time.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds that the endpoint may be silent.
        retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first repetition.
        max_failed (`float`, *optional*, defaults to `0.1`):
            Largest share of pairs that may get no verdict.
        prices (`tuple[float, float]`, *optional*):
            Of a million prompt tokens and of a million completion tokens, for [`~EndpointJudge.cost`].
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Raises:
        `ValueError`: for a bad argument or cache.
        `RuntimeError`: when called, if more than `max_failed` of the pairs get no verdict, or the endpoint refuses us.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        template: str = DEFAULT_TEMPLATE,
        settings: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        max_failed: float = 0.1,
        prices: tuple[float, float] | None = None,
        progress: bool = True,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"`base_url` must begin with http:// or https://, got {base_url!r}.")
        missing = [field for field in ("{prompt}", "{answer_a}", "{answer_b}") if field not in template]
        missing += [verdict for verdict in ("[[A]]", "[[B]]", "[[TIE]]") if verdict not in template]
        if missing:
            raise ValueError(f"`template` lacks {', '.join(missing)}.")
        if {"model", "messages", "stream"} & set(settings or {}):
            raise ValueError("`settings` cannot have `model`, `messages` or `stream`: the judge sets or reads these.")
        least = {"concurrency": (concurrency, 1), "retries": (retries, 0), "backoff": (backoff, 0)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
        if timeout <= 0:
            raise ValueError(f"`timeout` must be above 0 seconds, got {timeout}.")
        if not 0 <= max_failed <= 1:
            raise ValueError(f"`max_failed` is a share of the pairs, from 0 to 1, not {max_failed}.")
        self.url, self.model, self.template = base_url.rstrip("/") + "/chat/completions", model, template
        self.settings = {"temperature": 0.0} if settings is None else settings
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.max_failed, self.prices, self.progress = max_failed, prices, progress
        self.usage = JudgeUsage()
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._lock = threading.Lock()
        self._cache_path = None if cache is None else Path(cache)
        self._cache = {} if cache is None else _read_cache(Path(cache))

    @property
    def cost(self) -> float | None:
        """What the tokens so far have cost, in the currency of `prices`; `None` without prices."""
        if self.prices is None:
            return None
        tokens = self.usage.prompt_tokens, self.usage.completion_tokens
        return sum(price * count for price, count in zip(self.prices, tokens, strict=True)) / 1e6

    def __call__(self, prompts: list[Prompt], answers_a: list[str], answers_b: list[str]) -> list[float]:
        pairs = list(zip(prompts, answers_a, answers_b, strict=True))
        executor = ThreadPoolExecutor(self.concurrency)
        try:
            futures = [executor.submit(self._compare, *pair) for pair in pairs]
            bar = tqdm(as_completed(futures), total=len(futures), desc="Judging pairs", disable=not self.progress)
            for future in bar:
                future.result()
        finally:  # whatever ended it, nothing that still waits is asked for
            executor.shutdown(cancel_futures=True)
        outcomes, problems = zip(*(future.result() for future in futures), strict=True) if futures else ((), ())
        problems = [problem for problem in problems if problem]
        self.usage.failed_pairs += len(problems)
        if len(problems) > self.max_failed * len(pairs):
            kept = "." if self._cache_path is None else "; what was answered is in the cache."
            raise RuntimeError(
                f"{len(problems)} of {len(pairs)} pairs got no verdict, more than `max_failed={self.max_failed}` of them. "
                f"The last problem: {problems[-1]}{kept}"
            )
        if problems:
            logger.warning(f"{len(problems)} of {len(pairs)} pairs got no verdict. The last problem: {problems[-1]}")
        return list(outcomes)

    def _compare(self, prompt: Prompt, answer_a: str, answer_b: str) -> tuple[float, str]:
        """The outcome of one pair, and what went wrong, if anything did."""
        if answer_a == answer_b:
            return 0.5, ""
        try:
            first = self._ask(prompt, answer_a, answer_b)
            second = 1.0 - self._ask(prompt, answer_b, answer_a)
        except _NoVerdict as problem:
            return math.nan, str(problem)
        return (first if first == second else 0.5), ""

    def _ask(self, prompt: Prompt, answer_a: str, answer_b: str) -> float:
        if not isinstance(prompt, str):
            prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        fields = {"prompt": prompt, "answer_a": answer_a, "answer_b": answer_b}
        # In one pass, so that braces in an answer stay what they are.
        text = _FIELD.sub(lambda match: fields[match[1]], self.template)
        body = {**self.settings, "model": self.model, "messages": [{"role": "user", "content": text}]}
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._cache:
                self.usage.cache_hits += 1
                return _verdict(self._cache[key])
        for attempt in range(self.retries + 1):
            try:
                answer = self._post(body)
                verdict = _verdict(answer)
                break
            except _NoVerdict as problem:
                if problem.wait is None or attempt == self.retries:
                    raise
                time.sleep(min(max(problem.wait, self.backoff * 2**attempt), _LONGEST_WAIT))
        with self._lock:
            self._cache[key] = answer
            if self._cache_path is not None:
                with self._cache_path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "model": self.model, "answer": answer}) + "\n")
        return verdict

    def _post(self, body: dict[str, Any]) -> str:
        """The text of the endpoint's answer."""
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
            raise _NoVerdict(f"{type(error).__name__} at {self.url}: {error}") from error
        try:
            answer = json.loads(content)
            usage = answer.get("usage") or {}
            with self._lock:
                self.usage.prompt_tokens += usage.get("prompt_tokens") or 0
                self.usage.completion_tokens += usage.get("completion_tokens") or 0
                self.usage.without_usage += not usage
            text = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _NoVerdict(f"{self.url} sent no chat completion, but {self._quote(content)}") from error
        if not isinstance(text, str):
            raise _NoVerdict(f"{self.url} sent a message without text: {self._quote(content)}")
        return text

    def _quote(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        # Some endpoints say which key they refuse.
        return _shorten(text.replace(self._api_key, "<api key>") if self._api_key else text)

    def _http_problem(self, error: urllib.error.HTTPError) -> Exception:
        try:
            content = error.read()
        except (OSError, http.client.HTTPException):
            content = b""
        problem = f"{self.url} answered with status {error.code}: {self._quote(content)}"
        if error.code in (408, 409, 429) or error.code >= 500:
            asked = error.headers.get("Retry-After", "")
            return _NoVerdict(problem, float(asked) if asked.isdecimal() else 0.0)
        if error.code in (401, 403, 404) or error.code < 400:
            return RuntimeError(f"{problem}. Check `base_url`, `model` and `api_key` (or OPENAI_API_KEY).")
        return _NoVerdict(problem, wait=None)


def _verdict(answer: str) -> float:
    found = _VERDICT.findall(answer)
    if not found:
        raise _NoVerdict(f"the judge's answer has no verdict such as [[A]]: {_shorten(answer)}")
    return _VERDICTS[found[-1]]


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def _read_cache(path: Path) -> dict[str, str]:
    """The answers in a cache by their keys. What a process that was killed left of its last line is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    *lines, rest = content.split(b"\n")
    answers = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            answers[record["key"]] = record["answer"]
            _verdict(record["answer"])
        except (ValueError, LookupError, TypeError, _NoVerdict) as error:
            raise ValueError(
                f"Line {number} of the cache {path} is no judge's answer: delete it or name another file."
            ) from error
    if rest:
        logger.warning(f"The last line of the cache {path} is incomplete and is cut off.")
        with path.open("r+b") as file:
            file.truncate(len(content) - len(rest))
    return answers
