"""How the value model should begin, and what a value head on the policy's own backbone costs: PPO on ParaDetox.

    python benchmarks/value_density.py all --data <folder>    # tune all arms alike, run the seeds, report
    python benchmarks/value_density.py report                 # the table of what is there

Data, start policy, reward model, judge and runs are those of `density.py`, which this prepares where they are not there
yet. Runs with a result are not repeated.

Needs scikit-learn: `pip install -e ".[benchmarks]"`.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from density import prepare, run_all
from density_report import cells_of_runs, choose, differences, interval, machine, paired
from density_settings import BATCH_SIZE, KL_COEFS, LAMS, SEEDS, TUNING_SEEDS, UPDATES, Job
from provenance import commit, require_runs


RESULTS = Path(__file__).resolve().parent / "results" / "value_density.md"
LEARNING_RATE = 3e-4
KL_LEVELS = (1, 2, 4)
VALUES: dict[str, dict[str, Any]] = {
    "as the reward model": {"value_model": "reward_model"},
    "at 0": {},
    "head on the policy": {"share_value_backbone": True},
}
ARMS = [(reward, values) for reward in ("token", "terminal") for values in VALUES]
BASELINE = "as the reward model"


def tuning_jobs(arm: tuple[str, str]) -> list[Job]:
    reward, values = arm
    return [
        Job(reward, LEARNING_RATE, kl_coef, seed, UPDATES, {"lam": lam, **VALUES[values]})
        for kl_coef in KL_COEFS[:2]
        for lam in LAMS
        for seed in TUNING_SEEDS
    ]


def write_report(output: Path) -> None:
    def read(jobs: list[Job]) -> list[dict[str, Any]]:
        paths = [output / "results" / f"{job.name}.json" for job in jobs]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    require_runs(output / "results")
    human = json.loads((output / "prepared.json").read_text())["lengths"]["chosen"]
    lines = [
        "# How values begin, on ParaDetox",
        "",
        f"`python benchmarks/value_density.py all --data <folder>`, {date.today()}, commit {commit()}, {machine()}.",
        "",
        "Policy, reward model, judge and runs are those of [the density dial](density.md), its arms `token` and "
        "`terminal`. Values begin `as the reward model`: the value model is a copy of it, sequence head included. `at "
        "0`: a copy with a head of 0, as by default. `head on the policy`: `share_value_backbone`. Every run: "
        f"{UPDATES} updates of {BATCH_SIZE} completions at a learning rate of {LEARNING_RATE:g}. Each arm has the "
        f"better of {len(tuning_jobs(ARMS[0]))} settings on seed {TUNING_SEEDS[0]}. Win rates are against the start "
        "policy, with 95 % intervals of the mean over the seeds (Student's t).",
        "",
        f"| reward | values begin | KL coefficient, lambda | seeds | {' | '.join(f'at {n} nats' for n in KL_LEVELS)} | "
        "at the end | length-controlled | KL | length |",
        f"|{' --- |' * (8 + len(KL_LEVELS))}",
    ]
    of_arm: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in ARMS:
        tuned = read(tuning_jobs(arm))
        if not tuned:
            continue
        setting = choose(tuned, human)
        runs = read([setting._replace(seed=seed) for seed in SEEDS])
        of_arm[arm] = runs
        if runs:
            cells = [*arm, f"{setting.kl_coef:g}, {setting.options['lam']:g}", str(len(runs))]
            lines.append(f"| {' | '.join(cells + cells_of_runs(runs, KL_LEVELS))} |")
    lines += [
        "",
        f"Win rates less those of `{BASELINE}` with the same reward and seed (how many), and the processor's time "
        "of a run, examinations included, over its:",
        "",
        f"| reward | values begin | {' | '.join(f'at {level} nats' for level in KL_LEVELS)} | at the end | time |",
        f"|{' --- |' * (4 + len(KL_LEVELS))}",
    ]
    for (reward, values), runs in of_arm.items():
        pairs = paired(runs, of_arm.get((reward, BASELINE), []))
        if values != BASELINE and pairs:
            time = interval([ours["seconds"] / theirs["seconds"] for ours, theirs in pairs], 2)
            lines.append(f"| {' | '.join([reward, values, *differences(pairs, KL_LEVELS), time])} |")
    lines += [
        "",
        "Win rates with the reward `token` less those with `terminal`, values and seed alike:",
        "",
        f"| values begin | {' | '.join(f'at {level} nats' for level in KL_LEVELS)} | at the end |",
        f"|{' --- |' * (2 + len(KL_LEVELS))}",
    ]
    for values in VALUES:
        pairs = paired(of_arm.get(("token", values), []), of_arm.get(("terminal", values), []))
        if pairs:
            lines.append(f"| {' | '.join([values, *differences(pairs, KL_LEVELS)])} |")
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["all", "report"])
    parser.add_argument("--data", type=Path, help="Folder with ParaDetox.")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/value-density"), help="Folder for models and results."
    )
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, each on one core.")
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    if arguments.stage == "all":
        if data is None:
            parser.error("name the folder with --data")
        output.mkdir(parents=True, exist_ok=True)
        if not (output / "prepared.json").exists():
            prepare(data, output)
        human_length = json.loads((output / "prepared.json").read_text())["lengths"]["chosen"]
        chosen = {arm: choose(run_all(tuning_jobs(arm), data, output, arguments.jobs), human_length) for arm in ARMS}
        run_all([chosen[arm]._replace(seed=seed) for seed in SEEDS for arm in ARMS], data, output, arguments.jobs)
    write_report(output)


if __name__ == "__main__":
    main()
