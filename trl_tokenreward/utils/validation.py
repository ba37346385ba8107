"""Checks of arguments."""

import math
from typing import Any


def check_least(**arguments: tuple[float, float]) -> None:
    """Raises a `ValueError` if an argument, given as `name=(value, minimum)`, is below its minimum."""
    for name, (value, minimum) in arguments.items():
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")


def check_no_nan(config: Any) -> None:
    """Raises a `ValueError` if a field of a dataclass is NaN, which is neither above nor below any bound."""
    for name, value in vars(config).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"`{name}` is NaN.")
