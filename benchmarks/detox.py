"""What dense rewards buy on a real model: SmolLM2 goes on with what people wrote, and is not to be toxic.

    python benchmarks/detox.py prepare --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/detox.py all --data <folder>    # runs what is missing, reports
    python benchmarks/detox.py report                 # the table of what is there

The folder holds `paradetox-8000.tsv`. Its parts are those of `density.py`, which asks the same of small models: toxic
sentences that the policy learns to write, edits that the reward models learn from, others for the judge, and held-out
ones. A prompt is a sentence's first two words, and a completion ends when the policy ends it.

`detox_few.py` asks the same of updates of 16 answers.

Needs TRL 1.12, for its PPOTrainer, and: `pip install -e ".[benchmarks]" trl==1.12.0`.
"""

from functools import cache
from pathlib import Path
from typing import Any

from density_data import GoldJudge, Parts, paradetox
from real_density import Corpus, Judge, lexicon, main


PROMPTS = 400


class Detox(Corpus):
    task = (
        "goes on with toxic sentences, and is not to be toxic. A prompt is a sentence's first two words, and a "
        "completion ends when the policy ends it. The judge is a classifier that learned from other edits"
    )
    response_length, stop_token = 24, "eos"
    max_length = 64

    def __init__(self, name: str, batch_size: int, updates: int, evaluate_every: int):
        self.name, self.batch_size = name, batch_size
        self.updates, self.evaluate_every = updates, evaluate_every

    def policy_texts(self, data: Path) -> list[str]:
        """Toxic sentences."""
        return [row["prompt"] + row["rejected"] for row in parts(data).policy]

    def pairs(self, data: Path, tokenizer: Any) -> tuple[Any, Any]:
        from trl_tokenreward.data.preprocessing import prepare_dataset

        of = parts(data)
        named = {"reward": of.reward, "test": of.test}
        train, test = (prepare_dataset(part, tokenizer, name=name)[0] for name, part in named.items())
        return train, test

    def prompts(self, data: Path, tokenizer: Any) -> tuple[Any, Any]:
        of = parts(data)
        return of.policy.select_columns("prompt"), of.test.select_columns("prompt").select(range(PROMPTS))

    def judges(self, data: Path) -> dict[str, Judge]:
        return {"classifier": GoldJudge(parts(data).gold), "lexicon": lexicon()}

    def judge_figures(self, data: Path, judge: Judge) -> dict[str, float]:
        return {"pairs": judge.pair_accuracy(parts(data).test)}


@cache
def parts(data: Path) -> Parts:
    return paradetox(data / "paradetox-8000.tsv")


DETOX = Detox("detox", batch_size=64, updates=40, evaluate_every=4)
# A quarter of the data of an update, and as many updates.
FEW_ANSWERS = Detox("detox_few", batch_size=16, updates=48, evaluate_every=6)


if __name__ == "__main__":
    main(DETOX, __doc__)
