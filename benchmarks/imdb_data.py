"""The data of `imdb_reward.py` and `imdb.py`: reviews that people minimally edited until the sentiment flipped."""

import csv
import gzip
from pathlib import Path

from datasets import Dataset


def reviews(path: Path, words: int = 70, limit: int | None = None) -> Dataset:
    """Counterfactually augmented IMDB reviews (Kaushik, Hovy and Lipton, 2020) as preference pairs.

    Args:
        path (`Path`):
            `imdb-counterfactual-train.tsv.gz`, or `-dev`. Two rows with one `batch_id` are a pair.
        words (`int`, *optional*, defaults to `70`):
            The first words of each side are kept.
        limit (`int`, *optional*):
            Most pairs. Those that are equal within their first words are among them; training drops and counts them.

    Returns:
        `Dataset`: Columns `chosen`, the positive review, and `rejected`, the negative one.
    """
    sides: dict[str, dict[str, str]] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            text = " ".join(row["Text"].replace("<br />", " ").split()[:words])
            sides.setdefault(row["batch_id"], {})[row["Sentiment"]] = text
    pairs = [pair for pair in sides.values() if len(pair) == 2]
    return Dataset.from_list([{"chosen": pair["Positive"], "rejected": pair["Negative"]} for pair in pairs[:limit]])
