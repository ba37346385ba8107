"""Editors: language models, or functions, that minimally edit answers."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..nn.modules import check_loaded, evaluation_mode, max_positions, without_peft
from ..utils.chat_endpoint import EndpointClient, EndpointUsage, Prompt, Unanswered
from ..utils.text import shorten
from ..utils.validation import check_least, check_least_if_given, check_positive, check_tokenizer


DEFAULT_TEMPLATE = """\
Below are a prompt and an answer to it. Edit the answer so that it meets these criteria:

<criteria>
{criteria}
</criteria>

Make as few changes as possible. Replace, delete or insert only the words that keep the answer from meeting the \
criteria, and copy all others exactly as they are, with their punctuation and line breaks. Do not rewrite or \
restructure the answer, do not improve its style, and keep its length about the same.

<prompt>
{prompt}
</prompt>

<answer>
{answer}
</answer>

Write the whole edited answer between <edited> and </edited>, and nothing else."""
# For answers that nobody has rejected.
MAYBE_RIGHT_TEMPLATE = f"{DEFAULT_TEMPLATE} If the answer meets the criteria already, copy it as it is."
_RETRY = """

An earlier attempt at this was refused: {problem} Try again, and write the whole edited answer between <edited> and \
</edited>."""


class Editor:
    """Base class of editors. Subclasses define `__call__`.

    Attributes:
        batch_size (`int`):
            Most requests in one call.
        concurrency (`int`):
            Most calls at a time, each from a thread of its own.
        usage ([`~utils.chat_endpoint.EndpointUsage`]):
            What has been used so far.
        prices (`tuple[float, float]` or `None`):
            Of a million prompt tokens and of a million completion tokens.
        settings (`dict`):
            Settings that determine the answers, as JSON-compatible values.
        stopped (`threading.Event`):
            Set once a run has failed or was interrupted, so that what it has asked for is no longer wanted.
    """

    batch_size: int = 1
    concurrency: int = 1
    prices: tuple[float, float] | None = None

    def __init__(self, settings: dict[str, Any]):
        self.settings, self.usage = settings, EndpointUsage()
        self.stopped = threading.Event()

    def __call__(self, requests: list[str], attempt: int) -> list[str | Unanswered]:
        """Returns the answer to each request, or an [`Unanswered`] with the reason. `attempt` is 0 at first; it is
        above 0 if earlier answers to the same requests were refused."""
        raise NotImplementedError

    def edit(
        self, prompts: list[Prompt], answers: list[str], requests: list[str], attempt: int
    ) -> list[str | Unanswered]:
        """As `__call__`, for an editor that reads the prompts and answers themselves instead of the requests that have
        them in it."""
        return self(requests, attempt)

    def edited_words(self, answer: str) -> str | None:
        """What an answer says that the edited text is: what stands between the last `<edited>` that is closed and its
        `</edited>`; `None` if nothing does."""
        # A regular expression would take a time that grows with the square of the number of tags.
        start = answer.rfind("<edited>", 0, max(answer.rfind("</edited>"), 0))
        return None if start < 0 else answer[start + len("<edited>") :].partition("</edited>")[0]


class FunctionEditor(Editor):
    """A function as editor: rules, a model behind another interface, or a judge that knows what is right.

    Args:
        function (`Callable`):
            Takes prompts (texts, or messages where the data set has messages) and answers, returns one edited answer
            for each. One that is right it returns as it is.
        name (`str`, *optional*):
            What the settings call it. Defaults to the function's own name.
        batch_size (`int`, *optional*, defaults to `8`):
            Most answers in one call.

    Raises:
        `ValueError`: for a bad argument, and when called, if the function does not return a list of as many texts.
    """

    def __init__(
        self, function: Callable[[list[Prompt], list[str]], list[str]], name: str | None = None, batch_size: int = 8
    ):
        check_least(batch_size=(batch_size, 1))
        super().__init__({"function": name or getattr(function, "__qualname__", type(function).__name__)})
        self.function, self.batch_size = function, batch_size

    def edit(
        self, prompts: list[Prompt], answers: list[str], requests: list[str], attempt: int
    ) -> list[str | Unanswered]:
        edited = self.function(prompts, answers)
        is_list = isinstance(edited, list | tuple) and all(isinstance(answer, str) for answer in edited)
        if not is_list or len(edited) != len(answers):
            raise ValueError(
                f"The editing function must return a list of {len(answers)} texts, as many as there are answers, but "
                f"returned {shorten(edited)}."
            )
        self.usage.requests += len(answers)
        return [*edited]

    def edited_words(self, answer: str) -> str | None:
        return answer


class EndpointEditor(Editor):
    """A language model behind an OpenAI-compatible chat-completions endpoint as editor.

    Args:
        base_url, model (`str`):
            See [`~utils.chat_endpoint.EndpointClient`].
        temperature (`float`, *optional*, defaults to `0.0`):
            Of the first attempt. `None` leaves it to the endpoint.
        retry_temperature (`float`, *optional*, defaults to `0.7`):
            Of the others.
        concurrency (`int`, *optional*, defaults to `8`):
            Most requests at a time.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds that a request may take, from the connection to the end of the answer.
        kwargs:
            `api_key`, `settings`, `retries` (of requests that fail), `backoff` and `prices`, as of the client.

    Raises:
        `ValueError`: for a bad argument.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        temperature: float | None = 0.0,
        retry_temperature: float | None = 0.7,
        concurrency: int = 8,
        timeout: float = 600.0,
        **kwargs: Any,
    ):
        check_least(concurrency=(concurrency, 1))
        self.client = EndpointClient(base_url, model, timeout=timeout, **kwargs)
        if "temperature" in self.client.settings:
            raise ValueError(
                "`settings` cannot have `temperature`: give `temperature` and `retry_temperature` instead."
            )
        check_least_if_given(temperature=(temperature, 0), retry_temperature=(retry_temperature, 0))
        temperatures = {"temperature": temperature, "retry_temperature": retry_temperature}
        super().__init__({"endpoint": base_url, "model": model, **self.client.settings, **temperatures})
        self.concurrency, self.usage, self.prices = concurrency, self.client.usage, self.client.prices
        self.stopped = self.client.stopped
        self._temperatures = temperature, retry_temperature

    def __call__(self, requests: list[str], attempt: int) -> list[str | Unanswered]:
        temperature = self._temperatures[attempt > 0]
        more = {} if temperature is None else {"temperature": temperature}
        answers: list[str | Unanswered] = []
        for request in requests:
            try:
                answers.append(self.client.complete(self.client.body(request, **more)))
            except Unanswered as problem:
                answers.append(problem)
        return answers


class LocalEditor(Editor):
    """A causal language model in this process as editor: greedy at first, sampling after a refused edit.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            It stays on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's. Requests get its chat template if it has one.
        batch_size (`int`, *optional*, defaults to `8`):
            Most requests at a time.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Most tokens in an answer.
        retry_temperature (`float`, *optional*, defaults to `0.7`):
            Of the attempts after the first.

    Raises:
        `TypeError`, `ValueError`: for a bad argument.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 1024,
        retry_temperature: float = 0.7,
    ):
        check_loaded(model, "model")
        check_tokenizer(tokenizer, "tokenizer")
        check_least(batch_size=(batch_size, 1), max_new_tokens=(max_new_tokens, 1))
        check_positive(retry_temperature=retry_temperature)
        pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad_token_id is None:
            raise ValueError("`tokenizer` has neither a pad token nor an EOS token.")
        name = without_peft(model).config.name_or_path or type(model).__name__
        super().__init__({"model": name, "max_new_tokens": max_new_tokens, "retry_temperature": retry_temperature})
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_new_tokens, self.retry_temperature, self._pad = max_new_tokens, retry_temperature, pad_token_id

    def __call__(self, requests: list[str], attempt: int) -> list[str | Unanswered]:
        ids = [self._encode(request) for request in requests]
        limit = max_positions(self.model)
        room = None if limit is None else limit - self.max_new_tokens
        answers: list[str | Unanswered] = [
            Unanswered(
                f"The request has {len(row)} tokens, but the model reads {limit} with the answer's "
                f"{self.max_new_tokens}."
            )
            for row in ids
        ]
        fitting = [index for index, row in enumerate(ids) if room is None or len(row) <= room]
        if fitting:
            texts = self._generate([ids[index] for index in fitting], sample=attempt > 0)
            for index, text in zip(fitting, texts, strict=True):
                answers[index] = text
        return answers

    def _encode(self, request: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            return self.tokenizer(request)["input_ids"]
        messages = [{"role": "user", "content": request}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def _generate(self, rows: list[list[int]], sample: bool) -> list[str]:
        width, device = max(map(len, rows)), self.model.device
        ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        # From the model's generation config only the stop tokens are used: a repetition penalty would keep the model
        # from copying the unchanged text.
        sampling = {"temperature": self.retry_temperature if sample else 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}
        with evaluation_mode(self.model):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=sample,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                pad_token_id=self._pad,
                **sampling,
            )[:, width:]
        self.usage.requests += len(rows)
        self.usage.prompt_tokens += int(mask.sum())
        self.usage.completion_tokens += int((output != self._pad).sum())
        return [
            self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in output
        ]
