"""Writes the results of `density.py`: tables in Markdown and learning curves, in `benchmarks/results`."""

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from density_settings import (
    ABLATION_SEEDS,
    ABLATIONS,
    ARMS,
    BATCH_SIZE,
    EVALUATE_EVERY,
    HIDDEN_SIZE,
    LAYERS,
    MAX_KL,
    MAX_LENGTH_ERROR,
    SEEDS,
    TUNING_SEEDS,
    UPDATES,
    VOCABULARY,
    Final,
    Job,
    allowed,
    final,
)
from provenance import commit


RESULTS = Path(__file__).resolve().parent / "results"
Pair = tuple[dict[str, Any], dict[str, Any]]
# The 97.5 % points of Student's t with 1, 2, ... degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
KL_LEVELS = (0.5, 1, 2, 4)
COLOURS = [
    "#000000",
    "#999999",
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#CC79A7",
]  # distinct with colour blindness


def write_results(
    output: Path,
    tuned: list[dict[str, Any]],
    settings: dict[str, tuple[float, float, float]],
    results: list[dict[str, Any]],
    long: list[dict[str, Any]],
    ablations: list[dict[str, Any]],
) -> None:
    """Write `density.md` and `density.png`.

    Args:
        output (`Path`):
            Folder with `prepared.json`.
        tuned, results, long, ablations (`list[dict]`):
            Results of the runs that tuned the arms, of the arms on all seeds, of the long runs, and of the token arm
            without one of its defaults, in the order of `density.ABLATIONS` and of the seeds.
        settings (`dict`):
            Each arm's learning rate, KL coefficient and lambda.
    """
    known = json.loads((output / "prepared.json").read_text())
    of_arm = {arm: [r for r in results if r["job"]["arm"] == arm] for arm in ARMS}
    human = known["lengths"]["chosen"]
    parts = ", ".join(f"{name} {size}" for name, size in known["parts"].items())
    lines = [
        "# The density dial on ParaDetox",
        "",
        f"`python benchmarks/density.py all --data <folder>`, {date.today()}, commit {commit()}, seeds "
        f"{', '.join(map(str, SEEDS))} (tuning: {', '.join(map(str, TUNING_SEEDS))}), {machine()}.",
        "",
        f"Policy and reward model: Llamas of {LAYERS} layers of {HIDDEN_SIZE}, vocabulary {VOCABULARY}, "
        f"{known['parameters']:,} parameters, trained on the spot. Rows: {parts}. The gold judge, a classifier of "
        f"character n-grams of the gold part, ranks {known['gold_accuracy']:.3f} of the test part's edits rightly. "
        f"Every run: {UPDATES} updates of {BATCH_SIZE} completions. Win rates are against the start policy, on the "
        f"test part's {known['parts']['test']} prompts, and with the KL and the length the mean of a run's last two "
        f"examinations, {EVALUATE_EVERY} updates apart. The people's edits have {human:.1f} tokens, the sentences that "
        f"they edited {known['lengths']['rejected']:.1f}; the edits win {known['human_win_rate']:.3f} against the "
        "start policy.",
        "",
        "## Reward models, on the test part",
        "",
        "| | sequence accuracy | AUROC of wrong tokens | edited-in above edited-out |",
        "| --- | --- | --- | --- |",
        *_reward_rows(known),
        "",
        "## Arms",
        "",
        "Each at the learning rate, KL coefficient and lambda of GAE that won on the tuning seed: the highest win "
        f"rate at a KL of at most {MAX_KL:g} nats and a length within {MAX_LENGTH_ERROR:.0%} of the people's, or the "
        "length nearest to theirs where no setting has that. Mean over the seeds, with a 95 % interval of the mean "
        "(Student's t). TRL's own coefficient is five times the one that stands here, for its score has no factor of a "
        "fifth.",
        "",
        "| arm | learning rate, KL coefficient, lambda | win rate | length-controlled | KL (nats) | length | within "
        "bounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, runs in of_arm.items():
        ends = [final(run) for run in runs]
        fit = sum(allowed(end, human) for end in ends)
        learning_rate, kl_coef, lam = settings[arm]
        lines.append(
            f"| {arm} | {learning_rate:g}, {kl_coef:g}, {lam:g} | {' | '.join(_cells(ends))} | {fit} of {len(ends)} |"
        )
    lines += [
        "",
        *_at_equal_kl(of_arm),
        "",
        *_speed(of_arm),
        "",
        *_long_runs(long),
        "",
        *_ablation_table(ablations, human),
        "",
        "## Tuning",
        "",
        *_tuning_table(tuned, human),
        "",
    ]
    lines += ["![Learning curves](density.png)", ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "density.md").write_text("\n".join(lines), encoding="utf-8")
    _plot(of_arm, long, human, RESULTS / "density.png")


def _reward_rows(known: dict[str, Any]) -> list[str]:
    names = {
        "reward_model": "token reward model, unchanged tokens right (weight 3), that of all arms but TRL",
        "reward_model_zero": "token reward model, unchanged tokens pulled to 0",
        "sequence_reward_model": "sequence reward model (TRL's RewardTrainer)",
    }
    rows = []
    for key, name in names.items():
        metrics = [known[key].get(f"eval_{metric}") for metric in ("accuracy", "token_auroc", "token_accuracy")]
        rows.append(f"| {name} | {' | '.join('' if value is None else f'{value:.3f}' for value in metrics)} |")
    return rows


def _speed(of_arm: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The update at which the token arm first reaches another arm's final win rate; means over the seeds."""
    curve = _mean_curve(of_arm["token"], "win_rate")
    lines = [
        "How soon the token arm's mean win rate is what another arm's is at the end:",
        "",
    ]
    for other, runs in of_arm.items():
        if other != "token":
            end = np.mean([final(run).win_rate for run in runs])
            reached = [update for update, value in curve if value >= end]
            lines.append(f"- {other} ({end:.3f}): {f'update {reached[0]} of {UPDATES}' if reached else 'not reached'}")
    return lines


def _at_equal_kl(of_arm: dict[str, list[dict[str, Any]]]) -> list[str]:
    header = [
        f"| | {' | '.join(f'at {level:g} nats' for level in KL_LEVELS)} | at the end |",
        f"| --- |{' --- |' * (len(KL_LEVELS) + 1)}",
    ]
    rates = [
        f"| {arm} | {' | '.join([*win_rates_at(runs, KL_LEVELS), _cells([final(run) for run in runs])[0]])} |"
        for arm, runs in of_arm.items()
    ]
    pairs = {arm: paired(of_arm["token"], runs) for arm, runs in of_arm.items() if arm != "token"}
    gains = [f"| less {arm} | {' | '.join(differences(both, KL_LEVELS))} |" for arm, both in pairs.items()]
    return [
        "## At equal KL",
        "",
        "The win rate when a run's KL first comes to so many nats, between two examinations by linear interpolation; "
        "mean over the seeds that come so far, with their number where it is not all.",
        "",
        *header,
        *rates,
        "",
        "The token arm's win rate less another's, seed by seed (how many seeds):",
        "",
        *header,
        *gains,
    ]


def win_rate_at_kl(curve: list[dict[str, Any]], level: float) -> float | None:
    """The win rate where the KL first reaches a level, interpolated; `None` if it never does."""
    for before, after in pairwise(curve):
        if before["kl"] < level <= after["kl"]:
            share = (level - before["kl"]) / (after["kl"] - before["kl"])
            return before["win_rate"] + share * (after["win_rate"] - before["win_rate"])
    return None


def _long_runs(long: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"## Runs of {3 * UPDATES} updates",
        "",
        "| arm, seed | at update | win rate | KL | length |",
        "| --- | --- | --- | --- | --- |",
    ]
    for run in long:
        for point in run["curve"]:
            if point["update"] and point["update"] % UPDATES == 0:
                cells = f"{point['win_rate']:.3f} | {point['kl']:.1f} | {point['length']:.1f}"
                lines.append(f"| {run['job']['arm']}, {run['job']['seed']} | {point['update']} | {cells} |")
    return lines


def _ablation_table(ablations: list[dict[str, Any]], human: float) -> list[str]:
    lines = [
        "## The token arm without one of its defaults",
        "",
        f"At its settings, seeds {', '.join(map(str, ABLATION_SEEDS))}.",
        "",
        "| | win rate | length-controlled | KL (nats) | length | within bounds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    number = len(ABLATION_SEEDS)
    for i, name in enumerate(ABLATIONS):
        ends = [final(run) for run in ablations[i * number : (i + 1) * number]]
        fit = sum(allowed(end, human) for end in ends)
        lines.append(f"| {name} | {' | '.join(_cells(ends))} | {fit} of {len(ends)} |")
    return lines


def _cells(ends: list[Final]) -> list[str]:
    digits = zip(Final._fields, (3, 3, 1, 1), strict=True)
    return [interval([getattr(end, name) for end in ends], places) for name, places in digits]


def _tuning_table(tuned: list[dict[str, Any]], human: float) -> list[str]:
    lines = [
        "| arm | learning rate | KL coefficient | lambda | win rate | KL | length | within bounds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in tuned:
        job, end = run["job"], final(run)
        cells = f"{end.win_rate:.3f} | {end.kl:.1f} | {end.length:.1f} | {'yes' if allowed(end, human) else 'no'}"
        lines.append(
            f"| {job['arm']} | {job['learning_rate']:g} | {job['kl_coef']:g} | {job['options']['lam']:g} | {cells} |"
        )
    return lines


def interval(values: list[float], digits: int, sign: str = "") -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:{sign}.{digits}f}"
    half = STUDENT[len(values) - 2] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:{sign}.{digits}f} ({mean - half:{sign}.{digits}f} to {mean + half:{sign}.{digits}f})"


def _mean_curve(runs: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [
        (points[0]["update"], float(np.mean([point[name] for point in points])))
        for points in zip(*(run["curve"] for run in runs), strict=True)
    ]


def _plot(of_arm: dict[str, list[dict[str, Any]]], long: list[dict[str, Any]], human: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((by_update, by_kl), (length, long_run)) = plt.subplots(2, 2, figsize=(11, 8))
    for (arm, runs), colour in zip(of_arm.items(), COLOURS, strict=True):
        updates, rates = zip(*_mean_curve(runs, "win_rate"), strict=True)
        spread = np.std([[point["win_rate"] for point in run["curve"]] for run in runs], axis=0)
        by_update.plot(updates, rates, color=colour, label=arm)
        by_update.fill_between(updates, rates - spread, rates + spread, color=colour, alpha=0.12, linewidth=0)
        kls = [kl for _, kl in _mean_curve(runs, "kl")]
        by_kl.plot(kls, rates, color=colour, marker=".", label=arm)
        length.plot(updates, [tokens for _, tokens in _mean_curve(runs, "length")], color=colour)
    nats = long_run.twinx()
    nats.set_ylabel("KL (nats), dotted")
    for run in long:
        points = run["curve"]
        updates = [point["update"] for point in points]
        long_run.plot(updates, [point["win_rate"] for point in points], color=COLOURS[list(ARMS).index("token")])
        nats.plot(updates, [point["kl"] for point in points], color="#000000", linestyle=":")
    length.axhspan((1 - MAX_LENGTH_ERROR) * human, (1 + MAX_LENGTH_ERROR) * human, color="#999999", alpha=0.15)
    for axes, x, y in (
        (by_update, "updates", "gold win rate against the start policy"),
        (by_kl, "KL to the start policy (nats)", "gold win rate"),
        (length, "updates", "mean length (tokens); grey: people's ± 20 %"),
        (long_run, "updates", "gold win rate, runs three times as long"),
    ):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
    by_update.legend(fontsize=8)
    figure.suptitle("ParaDetox: the same reward, more or less dense; mean over seeds, band: one standard deviation")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def choose(results: list[dict[str, Any]], human_length: float) -> Job:
    """A job of the setting with the highest mean win rate among those within the bounds of the density dial on every
    tuning seed; where none is, that whose length is nearest to the people's, if possible at a KL that is allowed."""
    of_setting: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        of_setting.setdefault(Job(**result["job"])._replace(seed=0).name, []).append(result)
    settings = [(runs[0]["job"], [final(run) for run in runs]) for runs in of_setting.values()]
    fit = [setting for setting in settings if all(allowed(end, human_length) for end in setting[1])]
    if fit:
        job, _ = max(fit, key=lambda setting: np.mean([end.win_rate for end in setting[1]]))
    else:
        near = [setting for setting in settings if all(end.kl <= MAX_KL for end in setting[1])] or settings
        job, _ = min(near, key=lambda setting: abs(np.mean([end.length for end in setting[1]]) - human_length))
    return Job(**job)


def paired(runs: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]) -> list[Pair]:
    """Two runs of each seed that both have, in the order of the seeds."""
    first, second = ({run["job"]["seed"]: run for run in both} for both in (runs, others))
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def difference(pairs: list[Pair], of: Callable[[dict[str, Any]], float | None]) -> str:
    """The mean difference over the pairs that have both, with its interval."""
    both = [(first, second) for pair in pairs if None not in (first := of(pair[0]), second := of(pair[1]))]
    return f"{interval([first - second for first, second in both], 3, sign='+')} ({len(both)})" if both else "–"


def differences(pairs: list[Pair], levels: Sequence[float]) -> list[str]:
    """Those of the win rates at levels of KL and at the end."""
    cells = [difference(pairs, lambda run, level=level: win_rate_at_kl(run["curve"], level)) for level in levels]
    return [*cells, difference(pairs, lambda run: final(run).win_rate)]


def win_rates_at(runs: list[dict[str, Any]], levels: Sequence[float]) -> list[str]:
    """Win rates at levels of KL, each with its interval over the runs that reach it, and how many do if not all."""
    cells = []
    for level in levels:
        reached = [w for r in runs if (w := win_rate_at_kl(r["curve"], level)) is not None]
        few = f" ({len(reached)} of {len(runs)})" if 0 < len(reached) < len(runs) else ""
        cells.append((interval(reached, 3) + few) if reached else "–")
    return cells


def cells_of_runs(runs: list[dict[str, Any]], levels: Sequence[float]) -> list[str]:
    """Win rates at levels of KL and the final figures, each with its interval over the runs."""
    return win_rates_at(runs, levels) + _cells([final(run) for run in runs])


def machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()}), one thread a run"
