"""The demo with several seeds: do dense rewards win for answers of several sentences?

    python benchmarks/demo_seeds.py --output runs/demo-seeds

Each seed runs the whole method from scratch: other rows, another start policy, another reward model, other completions.
What `examples/demo.py` writes for a seed stays in the output folder, and a seed that is there is not run again. The
figures go to `benchmarks/results/demo_seeds.md`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from density_report import RESULTS, commit, interval, machine


ROOT = Path(__file__).resolve().parents[1]
ARMS = ("terminal reward", "dense rewards")
WIN_RATE = "win rate against the start policy"
# Metric to its decimals.
METRICS = {WIN_RATE: 3, "judge's score": 2, "KL to the start policy (nats)": 2, "mean length (tokens)": 1}


def run_seed(seed: int, output: Path) -> dict[str, dict[str, float]]:
    """The demo's figures, run in a process of one thread unless they are there."""
    folder = output / str(seed)
    figures = folder / "figures.json"
    if not figures.exists():
        command = [sys.executable, str(ROOT / "examples/demo.py"), "--output", str(folder), "--seed", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-3000:]}")
        rates = json.loads(figures.read_text())[WIN_RATE]
        print(f"seed {seed}: " + ", ".join(f"{arm} {rates[arm]:.3f}" for arm in ARMS), flush=True)
    return json.loads(figures.read_text())


def report(seeds: list[int], results: list[dict[str, dict[str, float]]], command: str) -> str:
    """The figures as Markdown: each arm's mean over the seeds, and the difference seed by seed."""
    lines = [
        "# The demo with several seeds",
        "",
        f"`{command}`, {date.today()}, commit {commit()}, {machine()}.",
        "",
        "Mean over the seeds, each with rows, models and completions of its own, with a 95 % interval of the mean "
        "(Student's t). Both arms have the same start policy, reward model, number of updates, learning rate and KL "
        "coefficient.",
        "",
        f"| | start policy | {' | '.join(ARMS)} |",
        f"| --- | --- |{' --- |' * len(ARMS)}",
    ]
    for metric, digits in METRICS.items():
        columns = [[r[metric][name] for r in results if name in r[metric]] for name in ("start policy", *ARMS)]
        cells = [interval(values, digits) if values else "" for values in columns]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    differences = [r[WIN_RATE]["dense rewards"] - r[WIN_RATE]["terminal reward"] for r in results]
    lines += [
        "",
        f"Dense less terminal, seed by seed: {interval(differences, 3, sign='+')}.",
        "",
        f"| seed | {' | '.join(ARMS)} |",
        f"| --- |{' --- |' * len(ARMS)}",
    ]
    for seed, result in zip(seeds, results, strict=True):
        lines.append(f"| {seed} | {' | '.join(f'{result[WIN_RATE][arm]:.3f}' for arm in ARMS)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo-seeds"), help="folder for what the demo writes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, each on one core")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda seed: run_seed(seed, arguments.output), arguments.seeds))
    command = f"python benchmarks/demo_seeds.py --seeds {' '.join(map(str, arguments.seeds))}"
    (RESULTS / "demo_seeds.md").write_text(report(arguments.seeds, results, command), encoding="utf-8")


if __name__ == "__main__":
    main()
