"""Counts of rows: those that are kept and dropped, and those of two sides."""

from collections.abc import Mapping

import torch
from datasets import Dataset


REMEDIES = {
    "identical": "give pairs that differ",
    "too_long": "raise `max_length`",
    "not_minimal": "raise `max_edit_ratio`",
}


class DroppedRows:
    """Counts rows: those that are kept, and those that are dropped for one reason each.

    The counts live in shared memory and each data loader worker has its own, so the counts of a stream grow wherever it
    is read, and no two processes write to one place.

    Args:
        remedies (`Mapping[str, str]`, *optional*):
            The reasons to drop a row, and what to do about each. Defaults to those of preference rows.
        num_workers (`int`, *optional*, defaults to `0`):
            How many data loader workers there will be.
    """

    def __init__(self, remedies: Mapping[str, str] = REMEDIES, num_workers: int = 0):
        self.remedies = remedies
        self.outcomes = ("kept", *remedies)
        counts = torch.zeros(1 + num_workers, len(self.outcomes), dtype=torch.long, device="cpu")
        self._counts = counts.share_memory_()

    def __deepcopy__(self, memo: dict) -> "DroppedRows":
        return self  # a copied data set still counts here

    def add(self, outcome: str, rows: int = 1) -> None:
        info = torch.utils.data.get_worker_info()
        slot = 0 if info is None else 1 + info.id
        self._counts[slot % len(self._counts), self.outcomes.index(outcome)] += rows

    def counts(self) -> dict[str, int]:
        """`rows` read, those `kept`, and those dropped by reason."""
        counts = dict(zip(self.outcomes, self._counts.sum(0).tolist(), strict=True))
        return {"rows": sum(counts.values()), **counts}

    def describe(self) -> str:
        counts = self.counts()
        reasons = ", ".join(f"{counts[reason]} {reason}" for reason in self.remedies)
        return f"{counts['kept']} of {counts['rows']} rows are kept ({reasons})"

    def require_rows(self, name: str) -> None:
        """Raises `ValueError` if rows were read and none is kept."""
        counts = self.counts()
        if counts["kept"] or not counts["rows"]:
            return
        remedy = " or ".join(remedy for reason, remedy in self.remedies.items() if counts[reason])
        raise ValueError(f"Nothing is left of the {name} data set: {self.describe()}. To have rows, {remedy}.")


def count_pairs(dataset: Dataset) -> int:
    """The rows of a prepared data set that have two sides."""
    if "chosen_ids" not in dataset.column_names:
        return 0
    tables = dataset.select_columns(["chosen_ids"]).with_format("arrow").iter(batch_size=10_000)
    return sum(len(table) - table["chosen_ids"].null_count for table in tables)
