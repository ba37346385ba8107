"""The whole chain on real data: the demo on HH-RLHF's harmless pairs and on ParaDetox's human minimal edits.

    python benchmarks/real_data.py --data ../shared/data --output runs/real_data

`--data` is a folder with `hh-rlhf-harmless-base-test.jsonl.gz` (Anthropic/hh-rlhf, harmless-base, test split) and
`paradetox-8000.tsv` (the first 8,000 rows of s-nlp/paradetox). For each, a tokenizer, a small policy, a token reward model
and a judge are trained on the spot, PPO runs with the terminal and with dense rewards, and the table is printed and added
to the results file.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PROMPT_WORDS = 2


def paradetox_pairs(path: Path, output: Path) -> Counter:
    """Write ParaDetox as preference pairs: a sentence's first words are the prompt, the rest of it the rejected answer, and
    the rest of each human rewrite a chosen one. Rewrites that change the first words by more than their case have no common
    prompt; they are left out and counted."""
    counts = Counter()
    with path.open(encoding="utf-8") as lines, output.open("w", encoding="utf-8") as rows:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            toxic = row["toxic"].split(" ")
            prompt = " ".join(toxic[:PROMPT_WORDS])
            for name in ("neutral1", "neutral2", "neutral3"):
                rewrite = row[name]
                if not rewrite:
                    continue
                kept = len(toxic) > PROMPT_WORDS and rewrite.lower().startswith(prompt.lower() + " ")
                counts["kept" if kept else "other first words"] += 1
                if kept:
                    chosen, rejected = rewrite[len(prompt) :], row["toxic"][len(prompt) :]
                    rows.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/real_data"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "real_data.md")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=40)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    paradetox = arguments.output / "paradetox.jsonl"
    counts = paradetox_pairs(arguments.data / "paradetox-8000.tsv", paradetox)
    datasets = {
        "HH-RLHF, harmless-base, test split": arguments.data / "hh-rlhf-harmless-base-test.jsonl.gz",
        f"ParaDetox, first 8,000 rows ({dict(counts)} rewrites)": paradetox,
    }
    sections = [
        "# The whole chain on real data",
        f"`python benchmarks/real_data.py --data <folder> --seed {arguments.seed} --updates {arguments.updates}`, "
        f"{date.today()}. One seed, a policy trained on the spot: it shows that the chain runs, not what a method is worth.",
    ]
    for name, path in datasets.items():
        folder = arguments.output / path.name.split(".")[0]
        command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--dataset", str(path), "--output", str(folder)]
        subprocess.run([*command, "--seed", str(arguments.seed), "--updates", str(arguments.updates)], check=True)
        sections += [f"## {name}", (folder / "table.md").read_text(encoding="utf-8").strip()]
    arguments.results.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"\nWritten to {arguments.results}.")


if __name__ == "__main__":
    main()
