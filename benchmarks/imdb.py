"""What dense rewards buy on a real model: SmolLM2 writes film reviews, and is to like the films.

    python benchmarks/imdb.py prepare --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/imdb.py all --data <folder>    # runs what is missing, reports
    python benchmarks/imdb.py report                 # the table of what is there

The folder holds `imdb-counterfactual-train.tsv.gz` and `-dev.tsv.gz`. The first 1,000 pairs of the training file teach
the policy to write reviews and the reward models what to prefer; the judge learns from the others. A prompt is a
review's first tokens, and every completion has 48 tokens, so that its length plays no part. `imdb_long.py` asks the
same of 96 tokens, `imdb_few.py` of updates of 16 answers.

Needs TRL 1.12, for its PPOTrainer, and: `pip install -e ".[benchmarks]" trl==1.12.0`.
"""

from pathlib import Path
from typing import Any

from imdb_data import SentimentJudge, reviews
from real_density import Corpus, Judge, lexicon, main


TRAIN, DEV = "imdb-counterfactual-train.tsv.gz", "imdb-counterfactual-dev.tsv.gz"
PAIRS = 1000  # for policy and reward models; the judge has the others
PROMPT_LENGTH, PROMPTS = 8, 192


class Reviews(Corpus):
    stop_token = None

    def __init__(
        self, name: str, response_length: int, words: int, updates: int, evaluate_every: int, batch_size: int = 64
    ):
        self.name, self.response_length, self.batch_size = name, response_length, batch_size
        # The first words of each review; nine in ten reviews have `max_length` tokens in them.
        self.words = words
        self.updates, self.evaluate_every = updates, evaluate_every
        self.max_length = PROMPT_LENGTH + response_length
        self.task = (
            f"writes film reviews, and is to like the films. A prompt is a review's first {PROMPT_LENGTH} tokens, and "
            f"a completion has {response_length}, always. The judge is a classifier that learned from other reviews"
        )

    def policy_texts(self, data: Path) -> list[str]:
        """Both sides of half of the pairs."""
        pairs = reviews(data / TRAIN, words=self.words, limit=PAIRS // 2)
        return [text for side in ("chosen", "rejected") for text in pairs[side]]

    def pairs(self, data: Path, tokenizer: Any) -> tuple[Any, Any]:
        """As far as policies write, and without EOS, so that a sequence score is learned where it is read."""
        from trl_tokenreward.data.preprocessing import PREPARED_COLUMNS, prepare_dataset

        def cut(row: dict[str, Any]) -> dict[str, Any]:
            return {column: row[column][:-1][: self.max_length] for column in PREPARED_COLUMNS}

        parts = []
        for name, limit in ((TRAIN, PAIRS), (DEV, None)):
            rows, _ = prepare_dataset(reviews(data / name, words=self.words, limit=limit), tokenizer, name=name)
            parts.append(rows.map(cut).filter(lambda row: row["chosen_ids"] != row["rejected_ids"]))
        return parts[0], parts[1]

    def prompts(self, data: Path, tokenizer: Any) -> tuple[Any, Any]:
        return beginnings(data / TRAIN, tokenizer), beginnings(data / DEV, tokenizer).select(range(PROMPTS))

    def judges(self, data: Path) -> dict[str, Judge]:
        """The first learned from whole reviews that no model sees."""
        every = reviews(data / TRAIN, words=None)
        classifier = SentimentJudge(every.select(range(PAIRS, len(every))))
        return {"classifier": lambda _, answers: classifier(answers), "lexicon": lexicon()}

    def judge_figures(self, data: Path, judge: Judge) -> dict[str, float]:
        import numpy as np

        dev = reviews(data / DEV, words=self.words)
        above, below = (np.array(judge([], list(dev[side]))) for side in ("chosen", "rejected"))
        return {
            "accuracy": float(np.mean([above > 0, below < 0])),
            "pairs": float(np.mean((above > below) + 0.5 * (above == below))),
        }


def beginnings(path: Path, tokenizer: Any) -> Any:
    """The first tokens of each review, once."""
    from datasets import Dataset

    pairs = reviews(path, words=70)
    texts = [text for pair in pairs for text in (pair["chosen"], pair["rejected"])]
    ids = [tuple(ids[:PROMPT_LENGTH]) for ids in tokenizer(texts)["input_ids"]]
    return Dataset.from_dict({"prompt": tokenizer.batch_decode([*dict.fromkeys(ids)])})


REVIEWS = Reviews("imdb", response_length=48, words=70, updates=24, evaluate_every=3)
# The KL of a whole answer grows about twice as fast.
LONG_REVIEWS = Reviews("imdb_long", response_length=96, words=110, updates=16, evaluate_every=2)
# A quarter of the data of an update, and twice as many updates.
FEW_REVIEWS = Reviews("imdb_few", response_length=48, words=70, updates=48, evaluate_every=6, batch_size=16)


if __name__ == "__main__":
    main(REVIEWS, __doc__)
