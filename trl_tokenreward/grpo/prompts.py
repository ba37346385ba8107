"""The prompts of GRPO, checked before the run: TRL reads them when it generates."""

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from torch import nn
from tqdm.auto import tqdm

from ..data.formats import ColumnError, given_prompt, plain_rows
from ..ppo.prompts import check_room
from ..utils.text import shorten


def check_prompts(
    dataset: Any,
    name: str,
    tokenize: Callable[[Any], list[int]] | None,
    readers: Mapping[str, nn.Module],
    max_completion_length: int | None,
    progress: bool = True,
) -> None:
    """Check that each row has a prompt that a completion can go on from. Streams are not read.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with a `prompt`, a text or messages.
        name (`str`):
            What errors call the data set.
        tokenize (`Callable`, *optional*):
            Gives the ids that TRL makes of a prompt. `None` where more than the prompt decides on them, such as images.
        readers (`Mapping[str, nn.Module]`):
            The models that read the ids, and those of a completion, by argument.
        max_completion_length (`int`, *optional*):
            Most tokens of a completion.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Raises:
        TypeError: If it is none of `datasets`.
        ValueError: If there is no row or no column `prompt`, or a row has no prompt, one that the chat template cannot
            render, one without a token, or one that is too long for a model. The error names the row.
    """
    dataset = plain_rows(dataset, name)
    if not isinstance(dataset, Dataset):
        return
    if len(dataset) == 0:
        raise ValueError(f"The {name} data set is empty.")
    if dataset.format["type"] is not None:  # a transform, which reads whole rows
        prompts = (row.get("prompt") for row in dataset)
    elif "prompt" in dataset.column_names:
        prompts = iter(dataset["prompt"])
    else:
        raise ValueError(f"The {name} data set needs a column 'prompt'; it has {sorted(dataset.column_names)}.")
    longest, most = 0, 0
    for row, prompt in enumerate(tqdm(prompts, f"Checking {name} prompts", len(dataset), disable=not progress)):
        try:
            length = _length(prompt, tokenize)
        except ValueError as error:
            raise ValueError(f"Row {row} of the {name} data set, {error}") from error
        if length > most:
            longest, most = row, length
    if most == 0:
        return
    remedy = "leave out prompts of more than {most} tokens, or lower `max_completion_length`."
    which = f"The prompt in row {longest} of the {name} data set"
    check_room(most, which, readers, remedy, max_completion_length=max_completion_length or 0)


def _length(prompt: Any, tokenize: Callable[[Any], list[int]] | None) -> int:
    """Tokens of a prompt, 0 if they are not known."""
    if prompt != "":  # of which some tokenizers make a token
        given_prompt({"prompt": prompt})
    if tokenize is None:
        return 0
    try:
        ids = tokenize(prompt)
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ColumnError("prompt", f"the chat template cannot render it: {error}") from error
    if not ids:
        raise ColumnError("prompt", f"{shorten(prompt)} has no tokens for a completion to go on from.")
    return len(ids)
