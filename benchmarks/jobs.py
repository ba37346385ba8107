"""The command line of benchmarks that are many runs: each run is a process of one thread and leaves one JSON file."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]


def main(
    doc: str,
    jobs: Sequence[Any],
    run: Callable[[Any, Path, str, Path], None],
    write_report: Callable[[Path], None],
    output: str,
) -> None:
    """`all`, `run --job NAME` or `report`.

    Args:
        doc (`str`):
            The script's docstring.
        jobs (`Sequence`):
            The runs, each with a `name`. Those whose file is in the output folder are not repeated.
        run (`Callable`):
            Makes one: called with the job, the folder of the data, the model and the output folder, where it leaves
            `<name>.json`.
        write_report (`Callable`):
            Called with the output folder.
        output (`str`):
            The folder, if none is named.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("stage", choices=["all", "run", "report"])
    parser.add_argument("--data", type=Path, help="Folder with the data files.")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="Path or Hub name.")
    parser.add_argument("--output", type=Path, default=Path(output), help="Folder for the results.")
    parser.add_argument("--job", choices=[job.name for job in jobs], help="With `run`: the run.")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.stage != "report" and arguments.data is None:
        parser.error("name the folder with --data")
    if arguments.stage == "run":
        [job] = [job for job in jobs if job.name == arguments.job]
        run(job, arguments.data, arguments.model, arguments.output)
        return
    missing = [job for job in jobs if not (arguments.output / f"{job.name}.json").exists()]
    for job in missing if arguments.stage == "all" else []:
        command = [sys.executable, sys.argv[0], "run", "--data", str(arguments.data), "--model", arguments.model]
        command += ["--output", str(arguments.output), "--job", job.name]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    write_report(arguments.output)
