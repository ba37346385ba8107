"""Counts of the rows that are kept and dropped."""

import torch


class DroppedRows:
    """Counts rows: those that are kept, and those that are dropped for one reason each.

    The counts live in shared memory and each data loader worker has its own, so the counts of a stream grow wherever it
    is read, and no two processes write to one place.

    Args:
        num_workers (`int`, *optional*, defaults to `0`):
            How many data loader workers there will be.
    """

    REASONS = ("identical", "too_long", "not_minimal")
    OUTCOMES = ("kept", *REASONS)

    def __init__(self, num_workers: int = 0):
        counts = torch.zeros(1 + num_workers, len(self.OUTCOMES), dtype=torch.long, device="cpu")
        self._counts = counts.share_memory_()

    def __deepcopy__(self, memo: dict) -> "DroppedRows":
        return self  # a copied data set still counts here

    def add(self, outcome: str, rows: int = 1) -> None:
        info = torch.utils.data.get_worker_info()
        slot = 0 if info is None else 1 + info.id
        self._counts[slot % len(self._counts), self.OUTCOMES.index(outcome)] += rows

    def counts(self) -> dict[str, int]:
        """`rows` read, those `kept`, and those dropped by reason."""
        counts = dict(zip(self.OUTCOMES, self._counts.sum(0).tolist(), strict=True))
        return {"rows": sum(counts.values()), **counts}

    def describe(self) -> str:
        counts = self.counts()
        reasons = ", ".join(f"{counts[reason]} {reason}" for reason in self.REASONS)
        return f"{counts['kept']} of {counts['rows']} rows are kept ({reasons})"

    def require_rows(self, name: str) -> None:
        """Raises `ValueError` if rows were read and none is kept."""
        counts = self.counts()
        if counts["kept"] or not counts["rows"]:
            return
        remedies = {
            "identical": "give pairs that differ",
            "too_long": "raise `max_length`",
            "not_minimal": "raise `max_edit_ratio`",
        }
        remedy = " or ".join(remedies[reason] for reason in self.REASONS if counts[reason])
        raise ValueError(f"Nothing is left of the {name} data set: {self.describe()}. To have rows, {remedy}.")
