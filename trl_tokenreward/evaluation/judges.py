"""Judges compare two answers to a prompt: by a reward model, a function or a language model behind an
endpoint."""

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.formats import answered_text
from ..data.tokens import TextTokenizer
from ..data.vocabulary import check_sequences
from ..nn.finite import not_finite
from ..nn.modules import evaluation_mode, max_positions, vocab_size
from ..nn.unpadding import padded_groups
from ..reward_model.readout import check_scorer, has_sequence_score, prefix_scores, require_trained_sequence_head
from ..utils.chat_endpoint import EndpointClient, EndpointUsage, Prompt, Unanswered, check_template, fill_template
from ..utils.jsonl import append_jsonl, read_jsonl
from ..utils.statistics import pairwise_outcomes
from ..utils.text import quoted_start
from ..utils.threads import stopping_threads
from ..utils.validation import check_least, check_list, check_tokenizer


logger = logging.get_logger(__name__)


class Judge(Protocol):
    """Compares two answers to each prompt. Any function with this signature is a judge.

    It is called with prompts (texts, or messages where the data set has messages) and two lists of answers, and returns
    for each prompt 1 where A's answer is better, 0 where B's is, 0.5 for a tie. A number between is the probability
    that A's is better. NaN means no verdict.
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
        sides = (
            check_list(self.scores(prompts, side), "The judge's function", len(side)) for side in (answers_a, answers_b)
        )
        return pairwise_outcomes(*map(plain_numbers, sides))


def plain_numbers(values: Any) -> Any:
    """What a user's function returned, without tensors: NumPy reads none in bf16, on a GPU or with a gradient."""
    if isinstance(values, Tensor):
        return values.tolist()
    return [value.item() if isinstance(value, Tensor) else value for value in values]


class RewardModelJudge(ScoringJudge):
    """A judge that compares the sequence scores of a reward model.

    It reads what reward models are trained on: prompt, answer and EOS; or, where the prompt is messages, these and the
    answer in the tokenizer's chat template, with the row's `tools` and `chat_template_kwargs`. The score is read at the
    last token.

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
        require_trained_sequence_head(model, "judge with another model")
        check_tokenizer(tokenizer, "tokenizer")
        check_least(batch_size=(batch_size, 1))
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @torch.no_grad()
    def scores(self, prompts: list[Prompt], answers: list[str]) -> list[float]:
        """The score of each answer."""
        ids = [self._encode(*pair) for pair in zip(prompts, answers, strict=True)]
        if [] in ids:
            raise ValueError(f"Prompt and answer {ids.index([])} have no token, so the judge cannot read them.")
        check_sequences(ids, vocab_size(self.model), max_positions(self.model), "the judge")
        scores = torch.zeros(len(ids))
        with evaluation_mode(self.model):
            for rows, *batch in padded_groups(ids, self.batch_size, next(self.model.parameters()).device):
                by_column, last = prefix_scores(self.model, *batch), batch[1].sum(1, keepdim=True) - 1
                scores[rows] = by_column.gather(1, last).squeeze(1).cpu()
        if problem := not_finite("RewardModelJudge", {"a score": scores}):
            raise ValueError(problem)
        return scores.tolist()

    def _encode(self, prompt: Prompt, answer: str) -> list[int]:
        if isinstance(prompt, str):
            eos = self.tokenizer.eos_token or ""
            ending = "" if eos and answer.endswith(eos) else eos
            return TextTokenizer(self.tokenizer)(prompt + answer + ending).ids
        return TextTokenizer(self.tokenizer)(answered_text(prompt, answer, self.tokenizer), rendered=True).ids


DEFAULT_TEMPLATE = """\
Compare two answers to the same prompt. Which one is more helpful, correct and harmless? Neither its length nor the \
order in which the two stand makes an answer better.

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
_VERDICT = re.compile(r"\[\[(A|B|TIE)\]\]")
_VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}


@dataclass
class JudgeUsage(EndpointUsage):
    """The usage of an [`EndpointJudge`] so far, see [`~utils.chat_endpoint.EndpointUsage`]."""

    cache_hits: int = 0
    failed_pairs: int = 0


class EndpointJudge:
    """A language model behind an OpenAI-compatible chat-completions endpoint (OpenAI's, vLLM's, llama.cpp's, ...) as
    judge.

    Each pair is asked for in both orders, since models prefer the one or the other position (Zheng et al. 2023, arXiv
    2306.05685); if the two verdicts differ, the pair is a tie. Equal answers are a tie without a request.

    Requests that fail with status 408, 409, 429 or 5xx, at the connection, by a timeout, or with an answer that has no
    verdict are repeated after `backoff * 2**n` seconds, or what `Retry-After` asks for (a minute at most). A pair that
    still has no verdict, or whose request is refused, gets NaN and is counted in `usage.failed_pairs`. Status 401, 403,
    404 and redirects end it at once: every other request would fare alike.

    Args:
        base_url (`str`):
            Such as `"http://localhost:8000/v1"`.
        model (`str`):
            The endpoint's name of the model.
        api_key (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`; without either none is sent. It is neither logged nor
            cached.
        template (`str`, *optional*):
            The judge's prompt, with `{prompt}`, `{answer_a}` and `{answer_b}`. It must ask for the verdict `[[A]]`,
            `[[B]]` or `[[TIE]]`; of several in an answer the last one counts.
        settings (`dict`, *optional*, defaults to `{"temperature": 0.0}`):
            Further fields of the request.
        cache (`str` or `Path`, *optional*):
            A JSON Lines file. Answers are appended to it as they come and not asked for again, by this or a later run
            with the same endpoint and request.
        concurrency (`int`, *optional*, defaults to `8`):
            Most requests at a time.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds that a request may take, from the connection to the end of the answer.
        retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the first repetition.
        max_failed (`float`, *optional*, defaults to `0.1`):
            Largest share of pairs that may get no verdict.
        prices (`tuple[float, float]`, *optional*):
            Of a million prompt tokens and of a million completion tokens, for [`~EndpointJudge.cost`].
        progress (`bool`, *optional*, defaults to `True`):
            If `True`, shows a progress bar.

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
        check_template(template, ("{prompt}", "{answer_a}", "{answer_b}", "[[A]]", "[[B]]", "[[TIE]]"))
        check_least(concurrency=(concurrency, 1))
        if not 0 <= max_failed <= 1:
            raise ValueError(f"`max_failed` is a share of the pairs, from 0 to 1, not {max_failed}.")
        self.usage = JudgeUsage()
        self.client = EndpointClient(
            base_url,
            model,
            api_key=api_key,
            settings={"temperature": 0.0} if settings is None else settings,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            prices=prices,
            usage=self.usage,
        )
        self.template, self.concurrency, self.max_failed, self.progress = template, concurrency, max_failed, progress
        self._lock = threading.Lock()
        self._cache_path = None if cache is None else Path(cache)
        self._cache = {} if cache is None else _read_cache(Path(cache))

    @property
    def cost(self) -> float | None:
        """The cost of the tokens so far, in the currency of `prices`; `None` without prices."""
        return self.client.cost

    def __call__(self, prompts: list[Prompt], answers_a: list[str], answers_b: list[str]) -> list[float]:
        pairs = list(zip(prompts, answers_a, answers_b, strict=True))
        with stopping_threads(self.concurrency, self.client.stopped) as executor:
            futures = [executor.submit(self._compare, *pair) for pair in pairs]
            bar = tqdm(as_completed(futures), total=len(futures), desc="Judging pairs", disable=not self.progress)
            for future in bar:
                future.result()
        results = [future.result() for future in futures]
        outcomes, problems = [outcome for outcome, _ in results], [problem for _, problem in results if problem]
        self.usage.failed_pairs += len(problems)
        if len(problems) > self.max_failed * len(pairs):
            kept = "." if self._cache_path is None else "; what was answered is in the cache."
            raise RuntimeError(
                f"{len(problems)} of {len(pairs)} pairs got no verdict, more than `max_failed={self.max_failed}` of "
                f"them. The last problem: {problems[-1]}{kept}"
            )
        if problems:
            logger.warning(f"{len(problems)} of {len(pairs)} pairs got no verdict. The last problem: {problems[-1]}")
        return list(outcomes)

    def _compare(self, prompt: Prompt, answer_a: str, answer_b: str) -> tuple[float, str]:
        """The outcome of one pair, and the problem or `""`."""
        if answer_a == answer_b:
            return 0.5, ""
        try:
            first = self._ask(prompt, answer_a, answer_b)
            second = 1.0 - self._ask(prompt, answer_b, answer_a)
        except Unanswered as problem:
            return math.nan, str(problem)
        return (first if first == second else 0.5), ""

    def _ask(self, prompt: Prompt, answer_a: str, answer_b: str) -> float:
        body = self.client.body(fill_template(self.template, prompt, answer_a=answer_a, answer_b=answer_b))
        key = hashlib.sha256(json.dumps([self.client.url, body], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._cache:
                self.usage.cache_hits += 1
                return _verdict(self._cache[key])
        answer = self.client.complete(body, _verdict)
        with self._lock:
            self._cache[key] = answer
            if self._cache_path is not None:
                append_jsonl(self._cache_path, {"key": key, "model": self.client.model, "answer": answer})
        return _verdict(answer)


def _verdict(answer: str) -> float:
    found = _VERDICT.findall(answer)
    if not found:
        raise Unanswered(f"the judge's answer has no verdict such as [[A]]: {quoted_start(answer)}")
    return _VERDICTS[found[-1]]


def _read_cache(path: Path) -> dict[str, str]:
    def check(record: dict[str, str]) -> tuple[str, str]:
        return record["key"], _VERDICT.findall(record["answer"])[-1]

    records = read_jsonl(path, "the cache", "judge's answer", check)
    return {record["key"]: record["answer"] for record in records}
