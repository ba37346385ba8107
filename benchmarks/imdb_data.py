"""The data of `imdb_reward.py` and `imdb.py`: reviews that people minimally edited until the sentiment flipped."""

import csv
import gzip
from pathlib import Path

from datasets import Dataset


def reviews(path: Path, words: int | None = 70, limit: int | None = None) -> Dataset:
    """Counterfactually augmented IMDB reviews (Kaushik, Hovy and Lipton, 2020) as preference pairs.

    Args:
        path (`Path`):
            `imdb-counterfactual-train.tsv.gz`, or `-dev`. Two rows with one `batch_id` are a pair.
        words (`int`, *optional*, defaults to `70`):
            The first words of each side are kept; all, if `None`.
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


class SentimentJudge:
    """How positive a text is, in log-odds: logistic regression of words, pairs of words and character n-grams (tf-idf).

    It shares nothing with a language model, and so none of its mistakes.
    """

    def __init__(self, pairs: Dataset):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union

        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        self.classifier = make_pipeline(make_union(words, characters), LogisticRegression(C=10.0, max_iter=1000))
        self.classifier.fit([*pairs["chosen"], *pairs["rejected"]], [1] * len(pairs) + [0] * len(pairs))

    def __call__(self, texts: list[str]) -> list[float]:
        return self.classifier.decision_function(list(texts)).tolist()
