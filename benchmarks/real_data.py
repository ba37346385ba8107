"""The whole chain on real data: the demo on HH-RLHF's harmless pairs, or on ParaDetox's human minimal edits.

    python benchmarks/real_data.py paradetox --data <folder>
    python benchmarks/real_data.py hh-rlhf --data <folder> --updates 8

The folder holds `hh-rlhf-harmless-base-test.jsonl.gz` (Anthropic/hh-rlhf, harmless-base, test split) and
`paradetox-8000.tsv` (the first 8,000 rows of s-nlp/paradetox). A tokenizer, a small policy, a token reward model and a judge
are trained on the spot, PPO runs with the terminal and with dense rewards, and the table is printed and written to
`benchmarks/results`.
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
    the rest of its first human rewrite the chosen one. One rewrite of each sentence, so that no sentence is in two parts of
    the data. Rewrites that change the first words by more than their case have no common prompt; they are left out and
    counted."""
    counts, seen = Counter(), set()
    with path.open(encoding="utf-8") as lines, output.open("w", encoding="utf-8") as rows:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            toxic, rewrite = row["toxic"], row["neutral1"] or ""
            prompt = " ".join(toxic.split(" ")[:PROMPT_WORDS])
            if toxic in seen:
                counts["repeated sentence"] += 1
            elif not (toxic.startswith(prompt + " ") and rewrite.lower().startswith(prompt.lower() + " ")):
                counts["other first words"] += 1
            else:
                counts["kept"] += 1
                seen.add(toxic)
                pair = {"prompt": prompt, "chosen": rewrite[len(prompt) :], "rejected": toxic[len(prompt) :]}
                rows.write(json.dumps(pair) + "\n")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", choices=["hh-rlhf", "paradetox"])
    parser.add_argument("--data", type=Path, required=True, help="Folder with the two files.")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="Folder for the models and the reports.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20)
    arguments = parser.parse_args()
    folder = arguments.output / arguments.dataset
    folder.mkdir(parents=True, exist_ok=True)
    results = ROOT / "benchmarks" / "results" / f"{arguments.dataset}.md"
    results.parent.mkdir(exist_ok=True)

    if arguments.dataset == "hh-rlhf":
        path = arguments.data / "hh-rlhf-harmless-base-test.jsonl.gz"
        source = "Anthropic/hh-rlhf, harmless-base, test split"
    else:
        path = folder / "pairs.jsonl"
        counts = paradetox_pairs(arguments.data / "paradetox-8000.tsv", path)
        source = f"s-nlp/paradetox, first 8,000 rows: {', '.join(f'{n} {reason}' for reason, n in counts.items())}"
    options = ["--seed", str(arguments.seed), "--updates", str(arguments.updates)]
    demo = [sys.executable, str(ROOT / "examples" / "demo.py"), "--dataset", str(path), "--output", str(folder)]
    subprocess.run([*demo, *options], check=True)
    command = f"python benchmarks/real_data.py {arguments.dataset} --data <folder> {' '.join(options)}"
    about = "One seed and a small policy trained on the spot: it shows that the chain runs, not what a method is worth."
    table = (folder / "table.md").read_text(encoding="utf-8")
    results.write_text(f"# {source}\n\n`{command}`, {date.today()}. {about}\n\n{table}", encoding="utf-8")
    print(f"Written to {results}.")


if __name__ == "__main__":
    main()
