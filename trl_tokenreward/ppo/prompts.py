"""The prompts of PPO: preparation, padding, and which rows an update trains on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from .._trl import get_dataset_column_names, pad
from ..data.dropped import DroppedRows
from ..data.formats import ColumnError, check_row, check_unicode, plain_rows, preference_prompt, prompt_text
from ..data.preprocessing import read_ids, without_padding
from ..data.tokens import TextTokenizer
from ..data.vocabulary import vocabulary_size
from ..nn.modules import max_positions
from ..utils.code import code_hash


DataCollator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


class Prompts(NamedTuple):
    """Prompts of one batch.

    Attributes:
        ids (`Tensor`):
            Shape (B, P), left-padded.
        mask (`Tensor`):
            Shape (B, P), 1 for real tokens.
    """

    ids: torch.Tensor
    mask: torch.Tensor


def join(
    prompts: Prompts, completion_ids: torch.Tensor, completion_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (B, P) and what follows them (B, T) as models read them: ids and attention mask, each (B, P + T)."""
    return torch.cat([prompts.ids, completion_ids], dim=1), torch.cat([prompts.mask, completion_mask], dim=1)


def real_ids(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The token ids of each row, without padding. Both tensors have the shape (B, L); the mask is 1 for real tokens."""
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


def check_room(length: int, which: str, readers: Mapping[str, nn.Module], remedy: str, **most_new: int) -> None:
    """Check that models have positions for a prompt and the longest completion.

    Args:
        length (`int`):
            Tokens of the prompt.
        which (`str`):
            The prompt, as the beginning of the error.
        readers (`Mapping[str, nn.Module]`):
            The models that read it, by argument.
        remedy (`str`):
            What to do, the end of the error, in which `{most}` stands for the most tokens of a prompt.
        most_new (`int`):
            The setting that says how many tokens the longest completion has.

    Raises:
        ValueError: If one has not.
    """
    [(setting, room)] = most_new.items()
    for name, model in readers.items():
        limit = max_positions(model)
        if limit is not None and length + room > limit:
            raise ValueError(
                f"{which} of {length} tokens and `{setting}={room}` do not fit in the {limit} positions of `{name}`: "
                f"{remedy.format(most=max(limit - room, 1))}"
            )


# Why a prompt is dropped, and what to do about it.
REMEDIES = {"too_long": "raise `max_prompt_length`"}


def prepare_prompts(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase,
    name: str,
    num_proc: int | None = None,
    max_prompt_length: int | None = None,
    dropped: DroppedRows | None = None,
) -> Dataset | IterableDataset:
    """Give a data set its column `input_ids`.

    Texts and messages become the tokens that [`~data.preprocessing.prepare_dataset`] gives the reward model of them:
    messages get the chat template with the row's `tools` and `chat_template_kwargs`, and a last message of the
    assistant is left open; texts get what the tokenizer puts in front of them, but nothing at their end.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with `input_ids`, which are taken as they are, but for padding where an `attention_mask` is 0; with
            `prompt`, a text or a list of messages; or preference rows with the prompt inside both sides, such as
            HH-RLHF's dialogues.
        processing_class (`PreTrainedTokenizerBase`):
            Tokenizer of the policy.
        name (`str`):
            What errors and the progress bar call the data set.
        num_proc (`int`, *optional*):
            Processes to use; not for streams.
        max_prompt_length (`int`, *optional*):
            Rows whose prompt has more tokens are dropped.
        dropped ([`~data.dropped.DroppedRows`], *optional*):
            Counts the rows that are kept and dropped; those of a stream as it is read.

    Raises:
        TypeError: If it is none of `datasets`.
        ValueError: Where there is no row or no such column, where a row has no prompt, one that the chat template
            cannot render, or ids that are none of the tokenizer's (the error names row and column), or where nothing is
            left.
    """
    dataset = plain_rows(dataset, name)
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"The {name} data set is empty.")
    is_transformed = isinstance(dataset, Dataset) and dataset.format["type"] is not None
    columns = list(dataset[0]) if is_transformed else get_dataset_column_names(dataset)
    if not ({"input_ids", "prompt"} & set(columns) or {"chosen", "rejected"} <= set(columns)):
        raise ValueError(
            f"The {name} data set needs a column 'prompt' or 'input_ids', or preference pairs; it has "
            f"{sorted(columns)}."
        )
    dropped = DroppedRows(REMEDIES) if dropped is None else dropped

    def keep(ids: list[int]) -> bool:
        fits = max_prompt_length is None or len(ids) <= max_prompt_length
        dropped.add("kept" if fits else "too_long")
        return fits

    prepare = _PreparePrompt(processing_class, name, is_transformed)
    padding = ["attention_mask"] if {"input_ids", "attention_mask"} <= set(columns) and not is_transformed else None
    if not isinstance(dataset, Dataset):
        dataset = dataset.map(prepare, with_indices=True, remove_columns=padding)
        return dataset.filter(keep, input_columns="input_ids")
    dataset = dataset.map(
        prepare, with_indices=True, remove_columns=padding, num_proc=num_proc, desc=f"Tokenizing {name} prompts"
    ).with_format(None)  # a transform has been applied
    kept = [index for index, ids in enumerate(dataset["input_ids"]) if keep(ids)]
    dropped.require_rows(name)
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


@dataclass
class _PreparePrompt:
    """The prompt of a row as the column `input_ids`; with the row's other columns, where these are a transform's."""

    tokenizer: PreTrainedTokenizerBase
    name: str
    with_columns: bool
    code: str = field(default_factory=code_hash)

    def __post_init__(self) -> None:
        self._tokenize = TextTokenizer(self.tokenizer)
        self._vocabulary = vocabulary_size(self.tokenizer)

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            check_row(row)
            check_unicode(row)
            columns = {name: row[name] for name in row if name != "attention_mask"} if self.with_columns else {}
            if "input_ids" in row:
                return {**columns, "input_ids": self._given_ids(row)}
            text, rendered = prompt_text(row, self.tokenizer)
            ids = self._tokenize(text, rendered=rendered, is_open=True).ids
            if not ids:
                raise ColumnError("prompt", "has no tokens.")
            return {**columns, "prompt": preference_prompt(row), "input_ids": ids}
        except ValueError as error:
            raise ValueError(f"Row {index} of the {self.name} data set, {error}") from error

    def _given_ids(self, row: dict[str, Any]) -> list[int]:
        if row.get("attention_mask") is not None:
            row = {**row, "input_ids": without_padding(row, "input_ids", "attention_mask")}
            return read_ids(row, "input_ids", self._vocabulary)
        ids, pad = read_ids(row, "input_ids", self._vocabulary), self.tokenizer.pad_token_id
        if pad is not None and pad != self.tokenizer.eos_token_id and pad in (ids[0], ids[-1]):
            raise ColumnError(
                "input_ids",
                f"has the pad token {pad} at an end, and no column `attention_mask` tells padding from the prompt. "
                "Give the ids without padding, or with their `attention_mask`.",
            )
        return ids


@dataclass
class DataCollatorForPrompts:
    """Left-pads `input_ids`, with an `attention_mask` that does not depend on the pad token.

    Args:
        pad_token_id (`int`):
            Filler; it may be any token, EOS too.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        return {
            "input_ids": pad(ids, padding_value=self.pad_token_id, padding_side="left"),
            "attention_mask": pad([torch.ones_like(i) for i in ids], padding_value=0, padding_side="left"),
        }


class PromptSource:
    """The rows of each update, as a pure function of the seed and the update's number.

    Rows come in shuffled passes over the data set, one pass after the other without a ragged batch between them, so
    nothing has to be stored to resume. A stream is read in its own order and from the start again when it ends.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Prepared prompts.
        batch_size (`int`):
            Rows of one update, over all processes.
        seed (`int`):
            Seed of the shuffles.
    """

    def __init__(self, dataset: Dataset | IterableDataset, batch_size: int, seed: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None
        self._stream: tuple[int, Iterator[dict[str, Any]]] | None = None

    def rows(self, update: int) -> list[dict[str, Any]]:
        """The rows of update number `update`, counted from 0."""
        if isinstance(self.dataset, Dataset):
            return [self.dataset[index] for index in self._indices(update)]
        if self._stream is None or self._stream[0] != update:
            self._stream = (update, self._read_from(update * self.batch_size))
        stream = self._stream[1]
        rows = [next(stream) for _ in range(self.batch_size)]
        self._stream = (update + 1, stream)
        return rows

    def _indices(self, update: int) -> list[int]:
        size = len(self.dataset)
        indices = []
        for position in range(update * self.batch_size, (update + 1) * self.batch_size):
            epoch, place = divmod(position, size)
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(size))
            indices.append(int(self._order[1][place]))
        return indices

    def _read_from(self, position: int) -> Iterator[dict[str, Any]]:
        while True:
            read = 0
            for row in self.dataset:
                read += 1
                if position > 0:
                    position -= 1
                    continue
                yield row
            if read == 0:
                raise ValueError("The stream of training prompts is empty, or all of its prompts are dropped.")
