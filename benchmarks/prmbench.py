"""Does a token reward model find the wrong steps of solutions? A process reward model on PRMBench.

    python benchmarks/prmbench.py all --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/prmbench.py report    # the table of what is there

The folder holds `prmbench-step-contradiction.jsonl.gz`: 267 right solutions, and the same with wrong steps. Its
problems are split into five folds. A run is measured on one of them, chooses its thresholds on the next and trains on
the other three; both solutions of a problem are in one fold. `make model` fetches the model.

Every run is a process of one thread and writes one JSON file in the output folder; a run whose file exists is not
repeated, so the benchmark can be stopped and started again.
"""

import gzip
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jobs

from provenance import all_runs, commit
from trl_tokenreward.utils.files import write_text


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prmbench.md"
FILE = "prmbench-step-contradiction.jsonl.gz"
NUM_FOLDS, SPLIT_SEED = 5, 0
RATE, BATCH_SIZE, MAX_LENGTH = 1e-4, 4, 512
LABELS = ("every_token", "last_token")
WORDS = "words"
AGGREGATIONS = ("mean", "min", "last")


class Job(NamedTuple):
    """One training run. That with labels on `WORDS` is a baseline, and has no epochs."""

    labels: str
    epochs: int
    fold: int

    @property
    def name(self) -> str:
        return f"{self.labels}-epochs{self.epochs}-fold{self.fold}"


EPOCHS = (2,)
# Fold by fold, so that all settings are there for the folds that are.
JOBS = [Job(WORDS, 0, fold) for fold in range(NUM_FOLDS)]
JOBS += [Job(labels, epochs, fold) for fold in range(NUM_FOLDS) for epochs in EPOCHS for labels in LABELS]


def folds_of(rows: list[dict[str, Any]], folds: int = NUM_FOLDS, seed: int = SPLIT_SEED) -> list[int]:
    """The fold of each row of PRMBench. Rows with one question are in one fold."""
    questions = sorted({row["original_question"] for row in rows})
    random.Random(seed).shuffle(questions)
    place = {question: number % folds for number, question in enumerate(questions)}
    return [place[row["original_question"]] for row in rows]


def read(path: Path, labels: str) -> tuple[list[list[dict[str, Any]]], dict[str, int]]:
    """The solutions of each fold, as rows with one side, and what became of all."""
    from trl_tokenreward.data.steps import prmbench_rows

    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    parts: list[list[dict[str, Any]]] = [[] for _ in range(NUM_FOLDS)]
    counts = Counter(rows=len(rows))
    for row, fold in zip(rows, folds_of(rows), strict=True):
        for solution in prmbench_rows(row, step_labels=labels):
            counts[solution if isinstance(solution, str) else "kept"] += 1
            if not isinstance(solution, str):
                parts[fold].append(solution)
    return parts, dict(counts)


def split(job: Job, data: Path) -> tuple[list[Any], list[Any], list[Any], dict[str, int]]:
    """The solutions of a run, for training, for the thresholds and for the figures; and what became of all."""
    parts, counts = read(data / FILE, "every_token" if job.labels == WORDS else job.labels)
    for_thresholds = (job.fold + 1) % NUM_FOLDS
    rows = [row for fold, part in enumerate(parts) if fold not in (job.fold, for_thresholds) for row in part]
    return rows, parts[for_thresholds], parts[job.fold], counts


def run(job: Job, data: Path, model: str, output: Path) -> None:
    """Train and measure one model."""
    from trl_tokenreward.reward_model.step_evaluation import choose_thresholds, scored_steps

    rows, others, held_out, counts = split(job, data)
    begin = time.time()
    if job.labels == WORDS:
        solutions, trained = [by_words(rows, part) for part in (held_out, others)], {}
    else:
        solutions, trained = by_model(job, rows, [held_out, others], model, output)
    scored: dict[str, Any] = {}
    for aggregation in AGGREGATIONS if job.labels == "every_token" else ("last",):
        measured, chosen_on = (scored_steps(*of_part, aggregation) for of_part in solutions)
        scored[aggregation] = {
            "thresholds": choose_thresholds(chosen_on),
            **{name: value if name == "dropped" else value.tolist() for name, value in measured._asdict().items()},
        }
    result = {
        **job._asdict(),
        "counts": counts,
        "trained on": {"kept": len(rows)},
        "scored": scored,
        "steps": 0,
        "seconds": time.time() - begin,
        "commit": commit(),
        **trained,
    }
    write_text(output / f"{job.name}.json", json.dumps(result, indent=1))


def by_model(job: Job, rows: list[Any], parts: list[list[Any]], model: str, output: Path) -> tuple[list[Any], dict]:
    """The solutions of the parts as a model scores them that is trained on the rows, and what the training says."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer
    from trl_tokenreward.reward_model.step_evaluation import score_solutions

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    # On a CPU, a step with "eager" attention takes a quarter less time than with "sdpa", whose backward pass is slow.
    backbone = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_backbone(backbone, copy=False),
        TokenRewardConfig(
            str(output / "scratch" / job.name),
            learning_rate=RATE,
            num_train_epochs=job.epochs,
            # The loss is that of the whole step; rows by themselves need no padding, and less memory.
            per_device_train_batch_size=1,
            gradient_accumulation_steps=BATCH_SIZE,
            max_length=MAX_LENGTH,
            seed=job.fold,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=4,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in training
        solutions = [score_solutions(trainer.model, tokenizer, Dataset.from_list(part), batch_size=2) for part in parts]
    return solutions, {
        "model": model,
        "trained on": trainer.dropped["train"],
        "steps": trainer.state.global_step,
        "log": trainer.state.log_history,
    }


def by_words(rows: list[Any], part: list[Any]) -> tuple[list[Any], dict[str, int]]:
    """A baseline that reads each step by itself: a logistic regression on its words and pairs of words. A language
    model wrote PRMBench's wrong steps, which may show in their style."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from trl_tokenreward.data.steps import read_steps
    from trl_tokenreward.reward_model.step_evaluation import ScoredSolution

    def steps_of(row: dict[str, Any]) -> tuple[list[list[int]], list[str], list[bool]]:
        spans, right = read_steps(row, row["completion"])
        return spans, [row["completion"][start:end] for start, end in spans], right

    _, texts, labels = zip(*map(steps_of, rows), strict=True)
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(class_weight="balanced")
    )
    classifier.fit([text for solution in texts for text in solution], [label for of in labels for label in of])
    solutions = []
    for number, row in enumerate(part):
        spans, words, right = steps_of(row)
        scores = classifier.decision_function(words).tolist()  # one "token" for each step
        solutions.append(ScoredSolution(number, row["prompt"], range(len(spans)), scores, spans, spans, right))
    return solutions, {"rows": len(part), "kept": len(part), "too_long": 0}


def pooled(parts: list[dict[str, Any]]) -> Any:
    """The held-out solutions of several folds. Each fold's thresholds become 0, since it has a model of its own."""
    import numpy as np

    from trl_tokenreward.reward_model.step_evaluation import ScoredSteps

    solutions, problems, columns = 0, 0, []
    dropped: Counter[str] = Counter()
    for part in parts:
        of_steps, of_first = part["thresholds"]
        problem = np.array(part["problem"])
        columns.append(
            (
                np.array(part["solution"]) + solutions,
                np.array(part["score"]) - of_steps,
                np.array(part["right"]),
                problem + problems,
                np.array(part["intervals"], dtype=float) - of_first,
            )
        )
        solutions, problems = solutions + len(problem), problems + int(problem.max()) + 1
        dropped.update(part["dropped"])
    return ScoredSteps(*map(np.concatenate, zip(*columns, strict=True)), dropped=dict(dropped))


def by_position(steps: Any) -> Any:
    """A baseline without a model: the later a step is in its solution, the more it is wrong. Its thresholds are chosen
    on the very solutions that it is measured on, which favours it."""
    import numpy as np

    from trl_tokenreward.reward_model.step_evaluation import choose_thresholds
    from trl_tokenreward.reward_model.step_metrics import threshold_interval

    lengths = np.bincount(steps.solution)
    first = np.cumsum(lengths) - lengths
    score = -(np.arange(len(steps.solution)) - first[steps.solution]) / lengths[steps.solution]
    intervals = [
        threshold_interval(score[a : a + n], steps.right[a : a + n]) for a, n in zip(first, lengths, strict=True)
    ]
    ranked = steps._replace(score=score, intervals=np.array(intervals))
    of_steps, of_first = choose_thresholds(ranked)
    return ranked._replace(score=score - of_steps, intervals=ranked.intervals - of_first)


MEASURES = {
    "step_auroc": "AUROC of wrong steps",
    "step_accuracy": "step accuracy",
    "step_f1": "F1 of wrong steps",
    "wrong_accuracy": "first wrong step found",
    "right_accuracy": "right solutions, none flagged",
    "first_wrong_f1": "F1 of the first wrong step",
}


def row(cells: Iterable[Any]) -> str:
    return " | ".join(map(str, cells))


def named(labels: str) -> str:
    return labels.replace("_", " ")


def figures(report: Any) -> list[Any]:
    return [getattr(report, name) for name in MEASURES]


def table(results: list[dict[str, Any]]) -> str:
    """The pooled figures as Markdown: one row for each setting, and the baselines."""
    from trl_tokenreward.reward_model.step_evaluation import step_report

    lines = [f"| labels on | epochs | step's score | folds | {row(MEASURES.values())} |", f"|{' --- |' * 10}"]
    steps = None
    for labels, epochs in dict.fromkeys((result["labels"], result["epochs"]) for result in results):
        runs = [result for result in results if (result["labels"], result["epochs"]) == (labels, epochs)]
        for aggregation in runs[0]["scored"]:
            steps = pooled([result["scored"][aggregation] for result in runs])
            name = f"{named(labels)} | {epochs} | {aggregation}"
            if labels == WORDS:
                name = "no model: words of the step | | "
            lines.append(f"| {name} | {len(runs)} | {row(figures(step_report(steps)))} |")
    if steps is None:
        return "No run has finished."
    report = step_report(by_position(steps))
    lines.append(f"| no model: the later, the worse | | | | {row(figures(report))} |")
    share = report.wrong_steps / report.steps
    cells = ["0.500", f"{share:.3f}", f"{2 * share / (1 + share):.3f}", "", "0.000", "0.000"]
    lines.append(f"| every step flagged | | | | {row(cells)} |")
    cells = ["0.500", f"{1 - share:.3f}", "0.000", "0.000", "1.000", "0.000"]
    lines.append(f"| no step flagged | | | | {row(cells)} |")
    return "\n".join(lines)


def write_report(output: Path) -> None:
    results = all_runs(RESULTS, output)
    results.sort(key=lambda result: JOBS.index(Job(result["labels"], result["epochs"], result["fold"])))
    runs = []
    for result in (result for result in results if result["labels"] != WORDS):
        cells = [named(result["labels"]), result["epochs"], result["fold"]]
        cells += [result["trained on"]["kept"], result["steps"]]
        runs.append(f"| {row(cells)} | {result['seconds'] / 60:.0f} | {result['commit']} |")
    counts = results[0]["counts"] if results else {}
    reasons = [f"{name}: {count}" for name, count in counts.items() if name not in ("rows", "kept")]
    dropped = ", ".join(reasons) or "none dropped"
    text = f"""# A process reward model on PRMBench

`python benchmarks/prmbench.py all --data <folder> --model models/SmolLM2-135M-Instruct`, {date.today()},
{len(runs)} of {len(JOBS) - NUM_FOLDS} runs of the model, one thread each, bf16, on {platform.machine()} with AMX. Other
work ran beside them.

SmolLM2-135M-Instruct (from 4-bit weights), trained in full at {RATE:g} in batches of {BATCH_SIZE} on the solutions of
three of five folds of problems, without those above {MAX_LENGTH} tokens; the seed is the fold. Thresholds come from the
fourth fold, figures from the fifth, whose problems the model has not seen. PRMBench's step contradictions have
{counts.get("rows", 0)} problems; of their solutions {counts.get("kept", 0)} are used ({dropped}).

Figures are of all folds that were run, with 95 % bootstrap intervals by problem. "First wrong step found" is of the
wrong solutions; the F1 of the first wrong step is ProcessBench's. "Words of the step" is a logistic regression on the
words and pairs of words of each step by itself, split in the same way: a language model wrote the wrong steps, and its
style may give some away. The thresholds of "the later, the worse" were chosen on the solutions that it is measured
on, which favours it.

{table(results)}

| labels on | epochs | fold | solutions trained on | steps | min | commit |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(runs)}
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    jobs.main(__doc__, JOBS, run, write_report, "runs/prmbench")
