"""Checks of arguments, of what functions of the user's return, and of rows that others wrote."""

import inspect
import math
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .text import shorten


_NAMES: dict[type, str] = {
    str: "a text",
    bool: "`True` or `False`",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a dictionary",
}
# What a field of a configuration takes for its type. Texts are left to the checks of the field.
_TAKEN: dict[type, tuple[type, ...]] = {bool: (bool,), int: (Integral,), float: (Real,), list: (list, tuple)}


def check_least(**arguments: tuple[float, float]) -> None:
    """Raises a `ValueError` if an argument, given as `name=(value, minimum)`, is below its minimum, or no finite
    number: NaN is neither above nor below any bound, and JSON has neither NaN nor infinity."""
    for name, (value, minimum) in arguments.items():
        if not minimum <= value < math.inf:
            number = "" if math.isfinite(value) else "a finite number and "
            raise ValueError(f"`{name}` must be {number}at least {minimum}, got {value}.")


def check_least_if_given(**arguments: tuple[float | None, float]) -> None:
    """[`check_least`] of those arguments that are not `None`."""
    check_least(**{name: (value, minimum) for name, (value, minimum) in arguments.items() if value is not None})


def check_positive(**arguments: float) -> None:
    """Raises a `ValueError` if an argument is not above 0, or no finite number."""
    for name, value in arguments.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a finite number above 0, got {value}.")


def check_share(**arguments: float | None) -> None:
    """Raises a `ValueError` if an argument is given and not above 0, or above 1."""
    for name, value in arguments.items():
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"`{name}` must be above 0 and at most 1, got {value}.")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raises a `ValueError` unless a setting has one of the values that it may have."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def check_fields(config: Any) -> None:
    """Check the values of a configuration, a dataclass, against the types of its fields, before one is compared.

    Raises:
        TypeError: If a number, a truth value or a list is something else. The error names the field.
        ValueError: If a number is NaN, which is neither above nor below any bound.
    """
    hints = get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        value, hint = getattr(config, name), hints[name]
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"`{name}` is NaN.")
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [get_origin(part) or part for part in parts if part is not type(None)]
        # transformers takes `None` for some fields whose types do not say so.
        if value is None or not _TAKEN.keys() >= set(kinds):
            continue
        is_taken = isinstance(value, tuple(taken for kind in kinds for taken in _TAKEN[kind]))
        if not is_taken or (isinstance(value, bool) and bool not in kinds):
            due = " or ".join(_NAMES[kind] for kind in kinds)
            is_quoted = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value, re.IGNORECASE)
            hint = " Write it without quotes, and in YAML with a point before an exponent: 3.0e-5." if is_quoted else ""
            raise TypeError(f"`{name}` must be {due}, but is {shorten(value)}.{hint}")


def check_tokenizer(tokenizer: Any, argument: str) -> None:
    """Raises a `TypeError` unless an argument is a tokenizer, and not its name."""
    from transformers import PreTrainedTokenizerBase  # takes seconds, and others here do without

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"`{argument}` must be a tokenizer, but is {shorten(tokenizer)}: load it with "
            "`AutoTokenizer.from_pretrained`."
        )


def check_devices(args: Any) -> None:
    """Raises a `ValueError` if `Trainer` would split batches over several GPUs in one process (`nn.DataParallel`),
    which cuts rows without regard to how they are packed. `args` are a trainer's own, after its `Trainer.__init__`."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to this one process. Start the script with `accelerate launch`, one "
            "process for each, or show it one of them: `CUDA_VISIBLE_DEVICES=0`."
        )


def check_list(returned: Any, what: str, number: int) -> Any:
    """What a function of the user's returned, if that is a list, a tuple, a tensor, an array or the like, of `number`
    entries.

    Args:
        returned (`Any`):
            What it returned.
        what (`str`):
            The function, as the beginning of the error: `"The reward function"`.
        number (`int`):
            How many entries are due.

    Raises:
        TypeError: If it is something else. The keys of a dictionary, the characters of a text and the members of a set
            would count as entries, and a generator or a coroutine has none yet.
        ValueError: If it has more or fewer entries.
    """
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError(f"{what} is an `async` function, which returned a coroutine: make it return a list.")
    if isinstance(returned, (str, bytes, Mapping, Set)) or not hasattr(returned, "__getitem__"):
        raise TypeError(f"{what} returned a {type(returned).__name__}, where a list of {number} entries is due.")
    try:
        length = len(returned)
    except TypeError as error:  # a tensor or an array of no dimension
        raise TypeError(f"{what} returned {returned!r}, where a list of {number} entries is due.") from error
    if length != number:
        raise ValueError(f"{what} returned {length} scores for {number} completions.")
    return returned


def check_keywords(function: Any, what: str, given: Iterable[str]) -> None:
    """Raises a `TypeError` if a function of the user's does not take the keyword arguments that it will be called with.

    Args:
        function (`Callable`):
            The function.
        what (`str`):
            The function, as the beginning of the error: `"The reward function"`.
        given (`Iterable[str]`):
            The arguments.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some that are not written in Python nothing is known
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if refused := [name for name in given if name not in taken]:
        raise TypeError(
            f"{what} is called with the keyword arguments {', '.join(given)}, but does not take `{refused[0]}`: end "
            "its arguments with `**columns`, which takes what it does not name."
        )


def get_value(row: Mapping[str, Any], column: str, kind: type = str) -> Any:
    """The value in a column of a row, a text, a list, a dictionary, a whole number or anything (`object`).

    Raises:
        ValueError: If the row has no such column, or another kind of value in it. The caller adds the row's number.
    """
    if column not in row:
        raise ValueError(f"has no `{column}`, only {sorted(map(str, row))}.")
    return check_value(row[column], column, kind)


def check_value(value: Any, name: str, kind: type) -> Any:
    """The value, if it is of a kind that [`get_value`] knows; `name` is what the error calls it.

    Raises:
        ValueError: If it is another kind of value. The caller adds the row's number.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"`{name}` must be {_NAMES[kind]}, but is {shorten(value)}.")
    return value
