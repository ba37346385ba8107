"""Does the token loss help on HH-RLHF, whose pairs are no minimal edits? The example scripts on its rows.

    python benchmarks/hh_rlhf.py all --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/hh_rlhf.py report    # the table of what is there

The folder holds `hh-rlhf-harmless-base-test.jsonl.gz` (Anthropic/hh-rlhf, harmless-base, test split). Of the pairs of
at most 128 tokens a side, 600 are for training, and accuracies are measured on the others. Each arm but TRL's is
`examples/train_token_reward.py`, as its docstring has it, with one option more; TRL's is `trl reward` with the same
settings. Last, `examples/train_fine_grained_ppo.py` trains a policy with the reward model of all pairs.

Each arm is a process of one thread and leaves one JSON file; arms that have one are not repeated. An arm takes a
quarter of an hour on a core with AMX. Needs `pip install -e ".[benchmarks]"`.
"""

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from provenance import commit, require_runs
from trl_tokenreward.utils.files import write_text


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "hh_rlhf.md"
FILE = "hh-rlhf-harmless-base-test.jsonl.gz"
MAX_LENGTH, TRAIN = 128, 600
RATIOS = (0.3, 0.5, 0.7, 0.9)

SHARED = ["--per_device_train_batch_size", "8", "--num_train_epochs", "1", "--max_length", "1024"]
FULL = [*SHARED, "--learning_rate", "1.0e-5"]
LORA = [*SHARED, "--learning_rate", "1.0e-4", "--use_peft", "--lora_task_type", "SEQ_CLS", "--lora_r", "32"]
ARMS: dict[str, list[str]] = {
    "TRL's RewardTrainer": FULL,
    "sequence loss alone": [*FULL, "--token_loss_weight", "0"],
    "all pairs": FULL,
    "max_edit_ratio .5": [*FULL, "--max_edit_ratio", "0.5"],
    "max_edit_ratio .3": [*FULL, "--max_edit_ratio", "0.3"],
    "all pairs, LoRA": [*LORA, "--lora_alpha", "16"],
}
POLICY = "PPO with the reward model of all pairs"
PPO = "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --total_episodes 64 --learning_rate 3.0e-6 "
PPO += "--response_length 48 --stop_token eos --missing_eos_penalty 1.0 --max_prompt_length 128"
# Processors with AMX train faster in bf16, and with "eager" attention: docs/reward-model.md.
PROCESSOR = ["--bf16", "True", "--use_cpu", "True", "--attn_implementation", "eager"]
PROCESSOR += ["--report_to", "none", "--save_strategy", "no", "--gradient_checkpointing", "False"]


def split(data: Path, model: str, output: Path) -> None:
    """Writes the rows of both parts as a folder that the scripts read, and the edit ratios of the whole file."""
    import numpy as np
    from transformers import AutoTokenizer

    from trl_tokenreward.data.preprocessing import RowPreparer

    with gzip.open(data / FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    preparer = RowPreparer("dialogue", AutoTokenizer.from_pretrained(model, trust_remote_code=False))
    prepared = [preparer.with_edit_ratio(row, index) for index, row in enumerate(rows)]
    ratios = np.array([ratio for _, ratio in prepared])
    short = [
        row
        for row, (ids, _) in zip(rows, prepared, strict=True)
        if max(len(ids["chosen_ids"]), len(ids["rejected_ids"])) <= MAX_LENGTH
    ]
    (output / "rows").mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(short))
    for name, part in (("train", order[:TRAIN]), ("test", order[TRAIN:])):
        text = "".join(json.dumps(short[index]) + "\n" for index in part)
        (output / "rows" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    known = {
        "rows": len(rows),
        "test": len(short) - TRAIN,
        "median": float(np.median(ratios)),
        "at_most": {str(ratio): int((ratios <= ratio).sum()) for ratio in RATIOS},
    }
    (output / "split.json").write_text(json.dumps(known))


def command_of(arm: str, model: str, output: Path) -> list[str]:
    target = ["--output_dir", str(output / "models" / slug(arm))]
    source = ["--dataset_name", str(output / "rows"), "--model_name_or_path", model]
    if arm == POLICY:
        reward = ["--reward_model_path", str(output / "models" / slug("all pairs"))]
        return [script("train_fine_grained_ppo"), *source, *reward, *target, *PPO.split(), *PROCESSOR]
    if arm == "TRL's RewardTrainer":
        return ["-m", "trl.cli.main", "reward", *source, *target, *ARMS[arm], *PROCESSOR]
    return [script("train_token_reward"), *source, *target, *ARMS[arm], *PROCESSOR]


def script(name: str) -> str:
    return str(ROOT / "examples" / f"{name}.py")


def slug(arm: str) -> str:
    return arm.lower().replace("'", "").replace(",", "").replace(" ", "-")


def run(arm: str, model: str, output: Path) -> None:
    """Train one arm and measure it."""
    command = command_of(arm, model, output)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    (output / "results").mkdir(exist_ok=True)
    begin, path = time.time(), output / "results" / f"{slug(arm)}.json"
    with path.with_suffix(".log").open("w") as log:
        done = subprocess.run([sys.executable, *command], env=environment, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.time() - begin
    log = path.with_suffix(".log").read_text()
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{log[-3000:]}")
    figures = {} if arm == POLICY else measure(arm, model, output)
    logged = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip().startswith("{'")]
    result = {"arm": arm, "seconds": seconds, "commit": commit(), **figures, "log": logged}
    write_text(path, json.dumps(result, indent=1))


def measure(arm: str, model: str, output: Path) -> dict[str, Any]:
    """Accuracies on the held-out rows, with 95 % bootstrap intervals."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from trl_tokenreward import TokenRewardModel, evaluate_token_rewards
    from trl_tokenreward.utils.statistics import bootstrap_interval

    torch.set_num_threads(1)
    folder = output / "models" / slug(arm)
    test = load_dataset("json", data_files=str(output / "rows" / "test.jsonl"), split="train")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    kwargs = {"dtype": torch.float32, "attn_implementation": "eager", "trust_remote_code": False}
    if arm == "TRL's RewardTrainer":
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **kwargs).eval()
        above = []
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            for row in test:
                ids = [tokenizer(row[side] + tokenizer.eos_token)["input_ids"] for side in ("chosen", "rejected")]
                chosen, rejected = (classifier(torch.tensor([side])).logits.item() for side in ids)
                above.append((chosen > rejected) + 0.5 * (chosen == rejected))
        low, high = bootstrap_interval(above, 0)
        return {"sequence_accuracy": {"value": sum(above) / len(above), "low": low, "high": high}}
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        base = TokenRewardModel.from_pretrained(model, **kwargs)
        reward_model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    else:
        reward_model = TokenRewardModel.from_pretrained(folder, **kwargs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = evaluate_token_rewards(reward_model, tokenizer, test)
    names = ("sequence_accuracy", "token_accuracy", "token_auroc")
    return {name: vars(getattr(report, name)) for name in names if getattr(report, name, None) is not None}


def write_report(output: Path) -> None:
    require_runs(output / "results")
    known = json.loads((output / "split.json").read_text())
    results = {
        arm: json.loads(path.read_text())
        for arm in (*ARMS, POLICY)
        if (path := output / "results" / f"{slug(arm)}.json").exists()
    }
    at_most = ", ".join(f"{count} at most {ratio}" for ratio, count in known["at_most"].items())
    lines = [
        "# HH-RLHF with a pretrained model",
        "",
        f"`python benchmarks/hh_rlhf.py all --data <folder>`, {date.today()}, one thread each, bf16. The "
        "commit is that of each run.",
        "",
        f"Anthropic/hh-rlhf, harmless-base, test split: {known['rows']} pairs. Their edit ratio, the share of words "
        f"that differ, has a median of {known['median']:.2f}; {at_most}. SmolLM2-135M-Instruct (4-bit weights) learns "
        f"from {TRAIN} pairs of at most {MAX_LENGTH} tokens, one epoch, full training at 1e-5; {known['test']} pairs "
        "are held out. 95 % bootstrap intervals.",
        "",
        f"| arm | sequence accuracy | edited-in above edited-out | AUROC of edited-out tokens | min | commit |\n"
        f"|{' --- |' * 6}",
    ]
    for arm, result in results.items():
        if arm == POLICY:
            continue
        cells = [arm]
        for name in ("sequence_accuracy", "token_accuracy", "token_auroc"):
            figure = result.get(name)
            cells.append(f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})" if figure else "–")
        lines.append(f"| {' | '.join(cells)} | {result['seconds'] / 60:.0f} | {result['commit']} |")
    if POLICY in results:
        lines += ["", f"{POLICY}, `{PPO}`; what it logged:", "", "```", *results[POLICY]["log"], "```"]
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["all", "run", "report"])
    parser.add_argument("--data", type=Path, help="Folder with the file.")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="Path or Hub name.")
    parser.add_argument("--output", type=Path, default=Path("runs/hh_rlhf"), help="Folder for models and results.")
    parser.add_argument("--arm", choices=[*ARMS, POLICY], help="With `run`: the arm.")
    arguments = parser.parse_args()
    output = arguments.output
    if arguments.stage != "report":
        if arguments.data is None:
            parser.error("name the folder with --data")
        if not (output / "split.json").exists():
            split(arguments.data, arguments.model, output)
        arms = [arguments.arm] if arguments.stage == "run" else [*ARMS, POLICY]
        for arm in arms:
            if not (output / "results" / f"{slug(arm)}.json").exists():
                run(arm, arguments.model, output)
    write_report(output)


if __name__ == "__main__":
    main()
