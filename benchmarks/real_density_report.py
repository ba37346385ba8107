"""The table of `imdb.py` or `detox.py`: win rates at equal KL, and what the dense arms gain over the terminal one."""

import json
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from density_report import interval, machine, win_rate_at_kl
from provenance import kept_runs, stored_runs, with_kept
from real_density import ARMS, KL_COEF, LEARNING_RATE, MAX_KL, STAGES, Corpus


RESULTS = Path(__file__).resolve().parent / "results"
KL_LEVELS = (1, 2, 4)
# What each arm with dense rewards is compared with.
BASELINES = {"GRPO": "GRPO, scalar", "PPO": "PPO, terminal", "TRL": "PPO, terminal"}


def of_seeds(values: list[float], digits: int) -> str:
    """A figure over seeds: its mean with an interval; of two, whose interval would be wider than a win rate can be, the
    mean and both."""
    if len(values) == 2:
        return f"{np.mean(values):.{digits}f} ({' and '.join(f'{value:.{digits}f}' for value in values)})"
    return interval(values, digits) if values else "–"


def outcomes_at(curve: list[dict[str, Any]], axis: str, level: float) -> np.ndarray | None:
    """The outcome of each prompt where the KL, or the number of updates, first reaches a level, interpolated; `None` if
    it never does."""
    for before, after in pairwise(curve):
        if before[axis] < level <= after[axis]:
            share = (level - before[axis]) / (after[axis] - before[axis])
            first, last = np.array(before["outcomes"]), np.array(after["outcomes"])
            return first + share * (last - first)
    return None


def gain(runs: list[dict[str, Any]], baseline: list[dict[str, Any]], axis: str, level: float) -> str:
    """The mean difference to the baseline's runs with the same seeds, with a 95 % bootstrap interval over prompts and
    seeds."""
    of_seed = {run["job"]["seed"]: outcomes_at(run["curve"], axis, level) for run in baseline}
    rows = []
    for run in runs:
        ours, theirs = outcomes_at(run["curve"], axis, level), of_seed.get(run["job"]["seed"])
        if ours is not None and theirs is not None:
            rows.append(ours - theirs)
    if not rows:
        return "–"
    differences, generator = np.array(rows), np.random.default_rng(0)
    seeds, prompts = differences.shape
    means = []
    for _ in range(2000):
        drawn = differences[generator.integers(seeds, size=seeds)][:, generator.integers(prompts, size=prompts)]
        means.append(drawn.mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f}; seeds: {seeds})"


def measured(stage: dict[str, Any]) -> dict[str, Any]:
    """What a stage measured."""
    return {name: value for name, value in stage.items() if name not in ("seconds", "commit")}


def of_folder(table: Path, output: Path) -> dict[str, dict[str, Any]]:
    """What the stages and runs of a folder have left, by name, without texts that no table shows.

    Raises:
        `SystemExit`: if runs that are kept beside the table are of other models.
    """
    stages = {stage: json.loads(path.read_text()) for stage in STAGES if (path := output / f"{stage}.json").exists()}
    kept = kept_runs(table)
    for stage in (stage for stage in stages if stage in kept):
        now, before = ({name: round(v, 3) for name, v in measured(of[stage]).items()} for of in (stages, kept))
        if now != before:
            raise SystemExit(
                f"The {stage} of {output} has {now}, that of the runs kept in {table.with_suffix('.jsonl')} {before}: "
                "delete that file to begin a new table."
            )
    runs = stored_runs(output / "results")
    for run in runs.values():
        for point in run["curve"]:
            point["outcomes"] = [int(outcome) if outcome in (0, 1) else outcome for outcome in point["outcomes"]]
            point["texts"] = point["texts"][:2] if point is run["curve"][-1] else []
    return stages | runs


def write_report(corpus: Corpus, output: Path) -> None:
    table = RESULTS / f"{corpus.name}.md"
    known = with_kept(table, of_folder(table, output))
    results = [result for result in known.values() if "job" in result]
    known = {stage: known[stage] for stage in STAGES if stage in known}
    of_arm = {arm: [result for result in results if result["job"]["arm"] == arm] for arm in ARMS}
    of_arm = {arm: runs for arm, runs in of_arm.items() if runs}
    lines = [
        f"# What dense rewards buy on a real model: {corpus.name}",
        "",
        f"`python benchmarks/{corpus.name}.py all --data <folder>`, {date.today()}, {machine()}. The commit is that of "
        "each run.",
        "",
        f"SmolLM2-135M-Instruct (from 4-bit weights), after one epoch of supervised fine-tuning, {corpus.task}; the "
        "second judge is VADER's lexicon.",
        "",
        f"An update is of {corpus.batch_size} completions and takes two optimizer steps at a rate of {LEARNING_RATE:g} "
        f"where an arm names no other; penalty of the KL {KL_COEF}. A run ends at a KL of {MAX_KL:g} nats, or after "
        f"{corpus.updates} updates. Every {corpus.evaluate_every} updates the policy answers held-out prompts with the "
        "random numbers of the start policy.",
        "",
        f"| model | figures | minutes | commit |\n|{' --- |' * 4}",
    ]
    for name, stage in known.items():
        cells = ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in measured(stage).items()
        )
        lines.append(f"| {name.replace('_', ' ')} | {cells} | {stage['seconds'] / 60:.0f} | {stage['commit']} |")
    lines += [
        "",
        "Win rates against the start policy, with 95 % intervals over three seeds or more (Student's t); of two, both.",
        "",
        f"| arm | seeds | {' | '.join(f'at {level} nats' for level in KL_LEVELS)} | at the end | KL there | updates | "
        "by the lexicon | length | distinct tokens | min of a processor | commit |",
        f"|{' --- |' * (10 + len(KL_LEVELS))}",
    ]
    for arm, runs in of_arm.items():
        at_levels = ([win_rate_at_kl(run["curve"], level) for run in runs] for level in KL_LEVELS)
        cells = [arm, len(runs), *(of_seeds([rate for rate in rates if rate is not None], 3) for rates in at_levels)]
        digits_of = {"win_rate": 3, "kl": 1, "update": 0, "lexicon_win_rate": 3, "length": 1, "distinct_tokens": 2}
        for name, digits in digits_of.items():
            # Runs without a length are of before it was noted: every completion had `response_length` tokens.
            cells.append(of_seeds([run["curve"][-1].get(name, corpus.response_length) for run in runs], digits))
        cells += [f"{np.mean([run['processor_seconds'] for run in runs]) / 60:.0f}"]
        cells += [", ".join(sorted({run["commit"] for run in runs}))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    shared = "the same trainer and the same reward model's sequence score on the last token (TRL's PPO: over ours)"
    updates = range(2 * corpus.evaluate_every, corpus.updates + 1, 2 * corpus.evaluate_every)
    at_equal = {
        f"Gains at equal KL over the arm with {shared}, same seeds and prompts; intervals by bootstrap over both.": (
            "kl",
            "nats",
            KL_LEVELS,
        ),
        f"The same at equal data, after as many updates, until the KL is {MAX_KL:g} nats.": (
            "update",
            "updates",
            updates,
        ),
    }
    for about, (axis, unit, levels) in at_equal.items():
        heads = [f"at {level} {unit}" for level in levels]
        lines += ["", about, "", f"| arm | {' | '.join(heads)} |\n|{' --- |' * (1 + len(heads))}"]
        for arm, runs in of_arm.items():
            baseline = next(name for prefix, name in BASELINES.items() if arm.startswith(prefix))
            if arm != baseline and baseline in of_arm:
                cells = [gain(runs, of_arm[baseline], axis, level) for level in levels]
                lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "## Texts", ""]
    for arm, runs in of_arm.items():
        lines += [f"{arm}, seed {runs[0]['job']['seed']}:", ""]
        lines += [f"> {' '.join(text.split())}\n" for text in runs[0]["curve"][-1]["texts"]]
    text = "\n".join(lines).rstrip() + "\n"
    table.write_text(text, encoding="utf-8")
    print(text)
