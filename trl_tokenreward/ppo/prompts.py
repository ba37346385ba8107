"""The prompts of PPO: preparation, padding, and which rows an update trains on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from .._trl import get_dataset_column_names, pad, trl_tokenize
from ..data.formats import preference_prompt


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


def prepare_prompts(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase,
    name: str,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Give a data set its column `input_ids`.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with `input_ids` (already tokenised, taken as they are); with `prompt`, a text or a list of messages,
            which gets the chat template and its generation prompt; or preference rows with the prompt inside both
            sides, such as HH-RLHF's dialogues.
        processing_class (`PreTrainedTokenizerBase`):
            Tokenizer of the policy.
        name (`str`):
            What errors and the progress bar call the data set.
        num_proc (`int`, *optional*):
            Processes to use; not for streams.

    Raises:
        ValueError: Where there is no row or no such column, or a row has no prompt.
    """
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"The {name} data set is empty.")
    columns = get_dataset_column_names(dataset)
    if "input_ids" in columns:
        return dataset
    in_pairs = "prompt" not in columns and {"chosen", "rejected"} <= set(columns)
    if "prompt" not in columns and not in_pairs:
        raise ValueError(
            f"The {name} data set needs a column 'prompt' or 'input_ids', or preference pairs; it has "
            f"{sorted(columns)}."
        )

    def tokenize(row: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = preference_prompt(row) if in_pairs else row["prompt"]
        if not isinstance(prompt, (str, list)) or not prompt:
            raise ValueError(
                f"Row {index} of the {name} data set: the prompt must be a text or messages, got {prompt!r}."
            )
        kwargs = {} if isinstance(prompt, str) else {"add_generation_prompt": True}
        return {"prompt": prompt, "input_ids": trl_tokenize(processing_class, prompt, **kwargs)["input_ids"]}

    kwargs = {}
    if isinstance(dataset, Dataset):
        kwargs = {"num_proc": num_proc, "desc": f"Tokenizing {name} prompts"}
    return dataset.map(tokenize, with_indices=True, **kwargs)


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
                raise ValueError("The stream of training prompts is empty.")
