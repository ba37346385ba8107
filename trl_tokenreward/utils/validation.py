"""Checks of arguments."""


def check_least(**arguments: tuple[float, float]) -> None:
    """Raises a `ValueError` if an argument, given as `name=(value, minimum)`, is below its minimum."""
    for name, (value, minimum) in arguments.items():
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
