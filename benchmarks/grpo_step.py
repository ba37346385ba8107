"""What advantages of tokens cost: an update of FineGrainedGRPOTrainer beside one of TRL's GRPOTrainer.

    python benchmarks/grpo_step.py

Both have one policy and reward models of one backbone: a TokenRewardModel here, its sequence classifier there. They
take turns in one process, on one thread, with the same prompts, seeds and completions, since their learning rate is as
good as 0. The table has medians and quartiles of the time of an update, and of the ratio of neighbouring turns. Memory
is measured in a process for each: the peak of three updates above what the models take.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Trainer
from trl import GRPOConfig, GRPOTrainer

from density_report import machine
from provenance import commit
from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer, TokenRewardModel


RESULTS = Path(__file__).resolve().parent / "results" / "grpo_step.md"
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
VOCABULARY, BATCH_SIZE, NUM_GENERATIONS, LENGTH = 8192, 16, 8, 64


def tokenizer() -> Any:
    """One word for each id: nothing here depends on texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "w0", "eos_token": "w1", "unk_token": "w2", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def trainers(folder: Path) -> dict[str, GRPOTrainer]:
    """Both trainers, with equal policies and reward models."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=None, **SIZES)
    policy, words = AutoModelForCausalLM.from_config(config), tokenizer()
    classifier = AutoModelForSequenceClassification.from_config(LlamaConfig(**{**config.to_dict(), "num_labels": 1}))
    for model, name in ((policy, "policy"), (classifier, "reward")):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    reward = TokenRewardModel.from_pretrained(folder / "reward")
    torch.nn.init.normal_(reward.token_score.weight)
    prompts = Dataset.from_dict({"prompt": [" ".join(f"w{3 + (i * j) % 999}" for j in range(16)) for i in range(8)]})
    settings = {
        "seed": 0,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": BATCH_SIZE,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": LENGTH,
        "max_steps": 1,
        "learning_rate": 1e-12,
        "logging_strategy": "no",
    }
    return {
        name: make(
            str(folder / "policy"),
            reward_funcs,
            args=config_class(str(folder / name), **settings),
            train_dataset=prompts,
            processing_class=words,
        )
        for name, make, config_class, reward_funcs in (
            ("TRL", GRPOTrainer, GRPOConfig, str(folder / "reward")),
            ("ours", FineGrainedGRPOTrainer, FineGrainedGRPOConfig, reward),
        )
    }


def peak(name: str) -> float:
    """The peak of resident memory in three updates of one trainer, less that before them, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainers(Path(folder))[name]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            trainer.train()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def take_turns(both: Mapping[str, Trainer], turns: int) -> tuple[dict[str, list[float]], list[float]]:
    """The processor's seconds of each trainer's turns, after one that warms up, and ours over TRL's turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(turns + 1):
        for name, trainer in both.items():
            torch.manual_seed(turn)
            begin = time.process_time()
            trainer.train()
            if turn > 0:
                seconds[name].append(time.process_time() - begin)
    return seconds, [ours / theirs for theirs, ours in zip(seconds["TRL"], seconds["ours"], strict=True)]


def cell(values: list[float]) -> str:
    """The median, with the quartiles."""
    low, middle, high = quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=20, help="Updates of each trainer.")
    parser.add_argument("--peak-of", choices=["TRL", "ours"], help="Print the peak of one trainer's memory, in MiB.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print(f"\n{peak(arguments.peak_of)}")
        return
    memory: dict[str, list[float]] = {"TRL": [], "ours": []}
    for name in memory:
        for _ in range(3):
            command = [sys.executable, __file__, "--peak-of", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            memory[name].append(float(done.stdout.split()[-1]))
    with tempfile.TemporaryDirectory() as folder:
        seconds, ratios = take_turns(trainers(Path(folder)), arguments.turns)

    def spread(values: list[float]) -> str:
        return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    text = f"""# An update of GRPO with advantages of tokens

`python benchmarks/grpo_step.py --turns {arguments.turns}`, {date.today()}, commit {commit()}, {machine()}.
An update is of {BATCH_SIZE} completions of {LENGTH} tokens, {NUM_GENERATIONS} to a prompt. Policy
and reward model have {SIZES["num_hidden_layers"]} layers of {SIZES["hidden_size"]} and a vocabulary of
{VOCABULARY:,}. Medians, with quartiles of the
seconds and least and greatest of the memory.

| | TRL's GRPOTrainer, sequence classifier | ours, token reward model | ours over TRL's |
| --- | --- | --- | --- |
| processor seconds, by turn | {cell(seconds["TRL"])} | {cell(seconds["ours"])} | {cell(ratios)} |
| peak above the models, MiB, 3 processes each | {spread(memory["TRL"])} | {spread(memory["ours"])} | \
{median(memory["ours"]) / median(memory["TRL"]):.2f} |
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
