"""The data of `density.py`: human edits in four parts that share no source sentence, and the gold judge of one of them.

    python benchmarks/density_data.py --data <folder>

measures what the data allow, in a second: how well a judge of the gold part ranks the test part's edits, and how well
one person's edit finds the words that another's takes out. It writes `benchmarks/results/density_data.md`. The folder
holds `paradetox-8000.tsv` (the first 8,000 rows of s-nlp/paradetox) and `qa-feedback-dev.json.gz` (QA-Feedback, dev
split).
"""

import argparse
import csv
import gzip
import json
import re
import shlex
import sys
from collections import Counter
from datetime import date
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from rapidfuzz.distance import Levenshtein


# Above this share of changed words a rewrite is no minimal edit.
MAX_WORD_DISTANCE = 0.35
PROMPT_WORDS = 2


class Parts(NamedTuple):
    """The data of four learners. No source sentence is in two of them.

    `policy` has texts to imitate, `prompt` and `rejected`; the others have pairs, `prompt`, `chosen` (the human edit)
    and `rejected`. `reward` may have several edits of one sentence, `test` has one of each. `counts` counts the rows
    by outcome."""

    policy: Dataset
    reward: Dataset
    gold: Dataset
    test: Dataset
    counts: Counter


def paradetox(path: Path, seed: int = 0, test: int = 500, gold: int = 1000) -> Parts:
    """ParaDetox (Logacheva et al., ACL 2022): toxic sentences and human rewrites that keep their meaning.

    A sentence's first two words are the prompt, the rest is the answer. Both sides are brought to one spelling
    ([`normalised`]): the source is lower-case with spaces before punctuation and the rewrites are not, so that
    otherwise most edits would be of format. A rewrite that shares the first word at least and changes at most
    `MAX_WORD_DISTANCE` of the words is a minimal edit; one that does not share the second word has a prompt of one.
    Sentences without a minimal edit serve the policy, which needs texts alone. The test part's edits share the whole
    prompt.
    """
    counts, sentences = Counter(), {}
    with path.open(encoding="utf-8") as lines:
        # Quotation marks are read as parts of the texts, which tears seven cells of 12,000. It stays so, since another
        # reading would deal all parts anew, and every figure is of these.
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            toxic = normalised(row["toxic"])
            if toxic in sentences:
                counts["repeated sentences"] += 1
                continue
            if len(toxic.split()) <= PROMPT_WORDS:
                counts["sentences with no more words than a prompt"] += 1
                continue
            rewrites = dict.fromkeys(
                normalised(row[name]) for name in ("neutral1", "neutral2", "neutral3") if row[name]
            )
            sentences[toxic] = [rewrite for rewrite in rewrites if _is_minimal_edit(toxic, rewrite)]
            counts["rewrites"] += len(rewrites)
            counts["minimal edits"] += len(sentences[toxic])
    rest = [toxic for toxic, rewrites in sentences.items() if not rewrites]
    edited = [toxic for toxic, rewrites in sentences.items() if rewrites]
    edited = [edited[i] for i in np.random.default_rng(seed).permutation(len(edited))]
    # The stable sort keeps the shuffled order and moves those fit for the test part to the front.
    edited.sort(key=lambda toxic: _shared_words(toxic, sentences[toxic][0]) < PROMPT_WORDS)
    test_part, edited = edited[:test], edited[test:]
    edited = [edited[i] for i in np.random.default_rng(seed + 1).permutation(len(edited))]
    gold_part, reward_part = edited[:gold], edited[gold : len(edited) - len(edited) // 8]
    policy_part = rest + edited[len(edited) - len(edited) // 8 :]

    def pairs(part: list[str], most: int | None = None) -> Dataset:
        return Dataset.from_list([_pair(toxic, edit) for toxic in part for edit in sentences[toxic][:most]])

    policy = Dataset.from_list([_pair(toxic) for toxic in policy_part])
    return Parts(policy, pairs(reward_part), pairs(gold_part), pairs(test_part, most=1), counts)


def qa_feedback(path: Path, seed: int = 0, test: int = 60, gold: int = 120) -> Parts:
    """QA-Feedback's dev split (Wu et al., NeurIPS 2023): answers and the corrections that people made of them."""
    counts, rows = Counter(), []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in json.load(file):
            answer, edit = row["prediction 1"].strip(), row["feedback"]["corrected-prediction"].strip()
            if answer == edit:
                counts["answers without a correction"] += 1
                continue
            distance = Levenshtein.normalized_distance(answer.split(), edit.split())
            counts["corrections"] += 1
            counts["corrections that are minimal edits"] += distance <= MAX_WORD_DISTANCE
            rows.append({"prompt": row["question"].strip(), "chosen": " " + edit, "rejected": " " + answer})
    order = np.random.default_rng(seed).permutation(len(rows))
    rows = [rows[i] for i in order]
    middle = test + gold + (len(rows) - test - gold) // 2
    return Parts(
        policy=Dataset.from_list(rows[middle:]),
        reward=Dataset.from_list(rows[test + gold : middle]),
        gold=Dataset.from_list(rows[test : test + gold]),
        test=Dataset.from_list(rows[:test]),
        counts=counts,
    )


def normalised(text: str) -> str:
    """Lower case, straight quotes, punctuation once and apart from words, single spaces, no full stop at the end."""
    text = text.lower().translate(str.maketrans("’‘“”", "''\"\"")).strip()
    text = re.sub(r" '(s|t|re|ve|ll|d|m)\b", r"'\1", text.replace(" n't", "n't"))
    text = re.sub(r"([.,!?;:\"()]+)(?=\s|$)", r" \1", text)
    text = re.sub(r"(^|\s)([\"(]+)(?=\w)", r"\1\2 ", text)
    text = re.sub(r"([.,!?])(\s*\1)+", r"\1", text)
    return re.sub(r"[\s.]+$", "", re.sub(r"\s+", " ", text))


def _shared_words(toxic: str, rewrite: str) -> int:
    """How many of the prompt's words both begin with."""
    before, after = toxic.split()[:PROMPT_WORDS], rewrite.split()[:PROMPT_WORDS]
    return next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(after))


def _is_minimal_edit(toxic: str, rewrite: str) -> bool:
    before, after = toxic.split(), rewrite.split()
    shared = _shared_words(toxic, rewrite)
    if before == after or shared == 0 or len(after) <= shared:
        return False
    return Levenshtein.normalized_distance(before, after) <= MAX_WORD_DISTANCE


def _pair(toxic: str, edit: str | None = None) -> dict[str, str]:
    words = PROMPT_WORDS if edit is None else _shared_words(toxic, edit)
    prompt = " ".join(toxic.split()[:words])
    pair = {"prompt": prompt, "rejected": toxic[len(prompt) :]}
    return pair if edit is None else {**pair, "chosen": edit[len(prompt) :]}


class GoldJudge:
    """How probable it is that a text is an edited one, by a classifier that has seen the gold part alone.

    Logistic regression of character n-grams (tf-idf, within words, 2 to 5 characters, each text's vector of length 1,
    so that a text's length by itself says nothing).
    """

    def __init__(self, pairs: Dataset):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        texts = [_text(row, "chosen") for row in pairs] + [_text(row, "rejected") for row in pairs]
        labels = [1] * len(pairs) + [0] * len(pairs)
        features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        self.classifier = make_pipeline(features, LogisticRegression(C=10.0, max_iter=1000))
        self.classifier.fit(texts, labels)

    def __call__(self, prompts: list[str], answers: list[str]) -> list[float]:
        """The log-odds that each answer is an edited one."""
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return self.classifier.decision_function(texts).tolist()

    def pair_accuracy(self, pairs: Dataset) -> float:
        """The share of pairs of which the edit scores higher; ties count half."""
        prompts = [row["prompt"] for row in pairs]
        above, below = (np.array(self(prompts, list(pairs[side]))) for side in ("chosen", "rejected"))
        return float(np.mean((above > below) + 0.5 * (above == below)))


def _text(row: dict[str, Any], side: str) -> str:
    return row["prompt"] + row[side]


def agreement(pairs: Dataset) -> dict[str, float]:
    """How one person's edit of a sentence finds the words that another person's takes out or replaces, over all ordered
    pairs of edits of one sentence: sensitivity, specificity, and the AUROC of such a yes-or-no finder, their mean."""
    by_source: dict[str, list[np.ndarray]] = {}
    for row in pairs:
        before, after = (_text(row, side).split() for side in ("rejected", "chosen"))
        wrong = np.zeros(len(before), dtype=bool)
        for tag, first, last, *_ in Levenshtein.opcodes(before, after):
            if tag in ("replace", "delete"):
                wrong[first:last] = True
        by_source.setdefault(_text(row, "rejected"), []).append(wrong)
    couples = [couple for edits in by_source.values() for couple in permutations(edits, 2)]
    one, other = (np.concatenate(side) for side in zip(*couples, strict=True))
    sensitivity, specificity = float(one[other].mean()), float((~one)[~other].mean())
    return {
        "pairs of edits": len(couples),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": (sensitivity + specificity) / 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder with the two files.")
    arguments = parser.parse_args()
    lines = [
        "# What the data of the density dial allow",
        "",
        f"`{shlex.join(['python', *sys.argv])}`, {date.today()}; the split's seed is 0.",
        "",
        "| data | rows and edits | policy, reward, gold, test | gold judge on the test part | on the reward part |",
        "| --- | --- | --- | --- | --- |",
    ]
    toxic = paradetox(arguments.data / "paradetox-8000.tsv")
    answers = qa_feedback(arguments.data / "qa-feedback-dev.json.gz")
    most = qa_feedback(arguments.data / "qa-feedback-dev.json.gz", gold=420)
    for name, parts in {
        "ParaDetox": toxic,
        "QA-Feedback": answers,
        "QA-Feedback, nearly all for the judge": most,
    }.items():
        judge = GoldJudge(parts.gold)
        counts = ", ".join(f"{count} {what}" for what, count in parts.counts.items())
        sizes = ", ".join(str(len(part)) for part in parts[:4])
        accuracies = " | ".join(f"{judge.pair_accuracy(part):.3f}" for part in (parts.test, parts.reward))
        lines.append(f"| {name} | {counts} | {sizes} | {accuracies} |")
    found = agreement(toxic.reward)
    lines += [
        "",
        "Of an answer about passages, a classifier of character n-grams cannot tell what is wrong: it would have to "
        "know the passages. So QA-Feedback has no gold judge here, and no run of the density dial.",
        "",
        f"ParaDetox, where a sentence has several edits ({found['pairs of edits']} ordered pairs in the reward part): "
        f"one person's edit finds {found['sensitivity']:.3f} of the words that another's takes out, and "
        f"{found['specificity']:.3f} of those that it leaves; as a finder of wrong words it has an AUROC of "
        f"{found['auroc']:.3f}.",
        "",
    ]
    path = Path(__file__).parent / "results" / "density_data.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
