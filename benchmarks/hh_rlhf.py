"""The whole chain on real dialogues: the demo on HH-RLHF's harmless pairs. (`density.py` has human minimal edits.)

    python benchmarks/hh_rlhf.py --data <folder> --updates 8

The folder holds `hh-rlhf-harmless-base-test.jsonl.gz` (Anthropic/hh-rlhf, harmless-base, test split). A tokenizer, a
small policy, a token reward model and a judge are trained on the spot, PPO runs with the terminal and with dense
rewards, and the table is printed and written to `benchmarks/results`.
"""

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder with the file.")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/hh-rlhf"), help="Folder for the models and the report."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20)
    arguments = parser.parse_args()
    path = arguments.data / "hh-rlhf-harmless-base-test.jsonl.gz"
    options = ["--seed", str(arguments.seed), "--updates", str(arguments.updates)]
    demo = [
        sys.executable,
        str(ROOT / "examples" / "demo.py"),
        "--dataset",
        str(path),
        "--output",
        str(arguments.output),
    ]
    subprocess.run([*demo, *options], check=True)
    command = f"python benchmarks/hh_rlhf.py --data <folder> {' '.join(options)}"
    about = "One seed and a small policy trained on the spot: it shows that the chain runs, not what a method is worth."
    table = (arguments.output / "table.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results" / "hh-rlhf.md"
    title = "Anthropic/hh-rlhf, harmless-base, test split"
    results.write_text(f"# {title}\n\n`{command}`, {date.today()}. {about}\n\n{table}", encoding="utf-8")
    print(f"Written to {results}.")


if __name__ == "__main__":
    main()
