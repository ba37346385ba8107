"""Samples answers of models to held-out prompts."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.formats import Messages
from ..data.tokens import continuation_text
from ..nn.finite import not_finite
from ..nn.modules import check_loaded, evaluation_mode, max_positions
from ..nn.unpadding import padded
from ..ppo.forward import completion_logps
from ..ppo.prompts import DataCollatorForPrompts, Prompts, join, prepare_prompts, real_ids
from ..ppo.sampling import check_device, generate, uniforms
from ..utils.validation import check_least, check_tokenizer


if TYPE_CHECKING:
    from ..utils.chat_endpoint import Prompt


class Answer(NamedTuple):
    """An answer to a prompt: its tokens, with the stop token; its text, without special tokens, as it goes on from the
    prompt's where that is a text; and whether it ended with the stop token, `None` for a given one."""

    ids: list[int]
    text: str
    ended: bool | None


class AnswerSampler:
    """Samples answers to the same prompts from one model after another. All models get the same random numbers, so
    equal models give equal answers.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The models' tokenizer.
        prompts ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `list`):
            Rows as [`~ppo.prompts.prepare_prompts`] takes them, or a list of texts or of messages.
        response_length (`int`, *optional*, defaults to `128`):
            Most tokens of an answer.
        temperature (`float`, *optional*, defaults to `1.0`):
            0 is greedy.
        stop_token_id (`int`, `"eos"` or `None`, *optional*, defaults to `"eos"`):
            Ends an answer. `None`: all answers have `response_length` tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in one forward pass.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random numbers, which are this sampler's own.
        progress (`bool`, *optional*, defaults to `False`):
            If `True`, shows a progress bar while a model answers.
        chat_template_kwargs (`dict`, *optional*):
            For the chat template, such as `{"enable_thinking": False}`, where a row has none of its own.

    Raises:
        `TypeError`, `ValueError`: for bad arguments, and when called if a prompt leaves no room for an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: "Dataset | IterableDataset | list[Prompt]",
        *,
        response_length: int = 128,
        temperature: float = 1.0,
        stop_token_id: int | Literal["eos"] | None = "eos",
        batch_size: int = 16,
        seed: int = 0,
        progress: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        check_tokenizer(tokenizer, "tokenizer")
        check_least(response_length=(response_length, 1), batch_size=(batch_size, 1), temperature=(temperature, 0))
        if stop_token_id == "eos":
            stop_token_id = tokenizer.eos_token_id
            if stop_token_id is None:
                raise ValueError("`stop_token_id='eos'`, but the tokenizer has no EOS token.")
        elif stop_token_id is not None and (type(stop_token_id) is not int or not 0 <= stop_token_id < len(tokenizer)):
            raise ValueError(
                f"`stop_token_id` must be 'eos', `None` or the id of one of the tokenizer's {len(tokenizer)} tokens, "
                f"got {stop_token_id!r}."
            )
        if not isinstance(prompts, (Dataset, IterableDataset)):
            if not isinstance(prompts, list) or {type(prompt) for prompt in prompts} not in ({str}, {list}):
                raise TypeError("`prompts` must be a data set, or a list of texts or of lists of messages, not empty.")
            prompts = Dataset.from_dict({"prompt": prompts})
        if chat_template_kwargs:
            name = "chat_template_kwargs"
            prompts = prompts.map(lambda row: {name: row.get(name) or chat_template_kwargs})
        self.tokenizer, self.response_length, self.temperature = tokenizer, response_length, temperature
        self.stop_token_id, self.batch_size, self.seed, self.progress = stop_token_id, batch_size, seed, progress
        rows = list(prepare_prompts(prompts, tokenizer, "evaluation"))
        self._ids = [list(row["input_ids"]) for row in rows]
        if not rows:
            raise ValueError("The evaluation data set is empty.")
        texts = tokenizer.batch_decode(self._ids, skip_special_tokens=True)
        # The prompts as the judges read them.
        self.prompts = [
            Messages(row["prompt"], row) if isinstance(row.get("prompt"), list) else row.get("prompt", text)
            for row, text in zip(rows, texts, strict=True)
        ]

    def __call__(self, model: nn.Module, name: str = "model") -> list[Answer]:
        """The model's answers to the prompts, in evaluation mode. Errors call the model `name`."""
        check_loaded(model, name)
        check_device(next(model.parameters()).device)
        limit = max_positions(model)
        longest = max(range(len(self._ids)), key=lambda index: len(self._ids[index]))
        if limit is not None and len(self._ids[longest]) + self.response_length > limit:
            raise ValueError(
                f"Row {longest} of the evaluation prompts has {len(self._ids[longest])} tokens; with `response_length="
                f"{self.response_length}` it does not fit in the model's {limit} positions. Shorten one of them."
            )
        answers: list[Answer] = []
        with evaluation_mode(model):
            batches = -(-len(self._ids) // self.batch_size)
            bar = tqdm(self._batches(model), total=batches, desc="Sampling answers", disable=not self.progress)
            for rows, prompts in bar:
                completions = generate(
                    model,
                    prompts,
                    uniforms((self.seed,), rows, self.response_length),
                    temperature=self.temperature,
                    stop_token_id=self.stop_token_id,
                    pad_token_id=self._pad_token_id,
                )
                _check(name, completions.per_token_logps, rows)
                ids = real_ids(completions.ids, completions.mask)
                texts = (self._text(row, completion) for row, completion in zip(rows, ids, strict=True))
                answers += map(Answer, ids, texts, completions.ended.tolist())
        return answers

    @torch.no_grad()
    def log_probabilities(self, model: nn.Module, answers: list[Answer], name: str = "model") -> list[float]:
        """The log-probability of each answer at the sampling temperature (1 where that is 0), in nats. Errors call the
        model `name`."""
        logps = []
        with evaluation_mode(model):
            for rows, prompts in self._batches(model):
                ids, mask = padded([answers[row].ids for row in rows], prompts.ids.device)
                by_token = completion_logps(model, *join(prompts, ids, mask), mask.shape[1], self.temperature or 1.0)
                _check(name, by_token, rows)
                logps += by_token.double().sum(1).tolist()
        return logps

    def given(self, texts: Sequence[str], name: str) -> list[Answer]:
        """Given texts as answers. The stop token, if there is one, counts as one of their tokens, as it does in
        samples."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`{name}` must be a model or a list of texts, one for each prompt.")
        if len(texts) != len(self._ids):
            raise ValueError(f"`{name}` has {len(texts)} answers, but there are {len(self._ids)} prompts.")
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        stop = [] if self.stop_token_id is None else [self.stop_token_id]
        return [Answer([*map(int, row), *map(int, stop)], text, None) for row, text in zip(ids, texts, strict=True)]

    def _text(self, row: int, ids: list[int]) -> str:
        if isinstance(self.prompts[row], str):
            return continuation_text(self.tokenizer, self._ids[row], ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def _pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id or 0  # any id works, because masks tell padding apart

    def _batches(self, model: nn.Module) -> Iterator[tuple[range, Prompts]]:
        collate, device = DataCollatorForPrompts(self._pad_token_id), next(model.parameters()).device
        for first in range(0, len(self._ids), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(self._ids)))
            batch = collate([{"input_ids": self._ids[row]} for row in rows])
            yield rows, Prompts(batch["input_ids"].to(device), batch["attention_mask"].to(device))


def _check(name: str, logps: Tensor, rows: range) -> None:
    # 0 where there is no token, so no mask is needed.
    if problem := not_finite("Evaluation", {f"a log-probability of `{name}`": logps}, rows=rows):
        raise ValueError(problem)
