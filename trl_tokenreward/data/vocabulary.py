"""Vocabularies, and rows that a model cannot read: ids that it has no embedding for, and more tokens than it has
positions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Models have some embeddings more than their tokenizers have tokens, so that their number is a round one.
_LEAST_SHARE = 0.9


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the tokenizer's highest id. There may be gaps below it."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def warn_of_other_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, model: str) -> None:
    """Warn, once, if a model, which the warning calls `model`, has many more embeddings, `vocab_size`, than the
    tokenizer has tokens: it was not trained with this one."""
    if vocab_size is not None and (known := vocabulary_size(tokenizer)) < _LEAST_SHARE * vocab_size:
        logger.warning_once(
            f"The tokenizer has {known} tokens and {model} {vocab_size} embeddings, so they do not belong together: "
            "ids would stand for other words. Load the tokenizer from where the model came from."
        )


def check_ids(
    dataset: Dataset | IterableDataset,
    columns: Sequence[str],
    vocab_size: int | None,
    name: str,
    max_positions: int | None = None,
) -> Dataset | IterableDataset:
    """Check that a model has an embedding for every token id of a data set, and positions for every row: at once, or of
    a stream as it is read.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with lists of token ids.
        columns (`Sequence[str]`):
            The columns that hold them. One that is missing, or `None`, holds none.
        vocab_size (`int` or `None`):
            The number of the model's embeddings. Where it is not known, nothing is checked.
        name (`str`):
            What the error calls the data set.
        max_positions (`int`, *optional*):
            The most tokens of a row that the model reads. Where it is not known, nothing is checked.

    Returns:
        `Dataset` or `IterableDataset`: the same rows.

    Raises:
        `ValueError`: if there is another id, or a longer row. The error names the row.
    """

    if vocab_size is None and max_positions is None:
        return dataset
    ids_below = math.inf if vocab_size is None else vocab_size
    most = math.inf if max_positions is None else max_positions

    def check(row: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        for column in columns:
            ids = row.get(column) or ()
            if len(ids) > most:
                raise ValueError(
                    f"Row {index} of the prepared {name} data set has {len(ids)} tokens in `{column}`, but `model` has "
                    f"{most} positions: set `max_length={most}`, which drops longer rows and counts them, or raise "
                    "`max_position_embeddings` in its configuration if it reads further."
                )
            wrong = [i for i in ids if not 0 <= i < ids_below]
            if wrong:
                raise ValueError(
                    f"Row {index} of the prepared {name} data set has the token id {wrong[0]} in `{column}`, but "
                    f"`model` has {vocab_size} embeddings: use its own tokenizer or, where tokens were added, "
                    "`model.resize_token_embeddings(len(tokenizer))`."
                )
        return row

    if isinstance(dataset, IterableDataset):
        return dataset.map(check, with_indices=True, features=dataset.features)
    first = 0
    columns = [column for column in columns if column in dataset.column_names]
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        extremes = [pc.min_max(pc.list_flatten(table[column])).as_py() for column in columns]
        longest = [pc.max(pc.list_value_length(table[column])).as_py() or 0 for column in columns]
        # Without an id there is neither a least nor a greatest one.
        strange = any((e["min"] or 0) < 0 or (e["max"] or 0) >= ids_below for e in extremes)
        if strange or max(longest, default=0) > most:
            for index, row in enumerate(table.to_pylist(), first):
                check(row, index)
        first += len(table)
    return dataset


def check_sequences(
    sequences: Sequence[Sequence[int]],
    vocab_size: int | None,
    max_positions: int | None,
    name: str,
    numbers: Sequence[int] | None = None,
) -> None:
    """Check that a model has an embedding for every token id, and positions for every sequence.

    Args:
        sequences (`Sequence[Sequence[int]]`):
            Token ids.
        vocab_size, max_positions (`int` or `None`):
            As in [`check_ids`].
        name (`str`):
            What errors call the model.
        numbers (`Sequence[int]`, *optional*):
            The rows that errors say the sequences are from. If `None`, they are counted from 0.

    Raises:
        `ValueError`: if it has not. The error names the row.
    """
    known, most = (math.inf if limit is None else limit for limit in (vocab_size, max_positions))
    for place, ids in enumerate(sequences):
        row = place if numbers is None else numbers[place]
        if len(ids) > most:
            raise ValueError(f"Row {row} has {len(ids)} tokens, but {name} has {most} positions: shorten it.")
        if (highest := max(ids, default=0)) >= known:
            raise ValueError(
                f"Row {row}: the tokenizer gives the id {highest}, but {name} knows {known} tokens: this is not its "
                "tokenizer."
            )
