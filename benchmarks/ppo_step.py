"""One PPO update of TRL 1.12's PPOTrainer and of FineGrainedPPOTrainer, side by side: time by phase, memory, and the floor.

    python benchmarks/ppo_step.py

needs TRL 1.12, the last version with a PPOTrainer (`make test` leaves such an environment in `.venv-trl1.12`). Both trainers
have the same models, prompts and completions, token for token; each run has a process of its own, and the trainers take
turns. The table is printed and written to `benchmarks/results/ppo_step.md`. It takes about 40 minutes on two cores; on a
machine with a GPU it runs there.

The floor is the time that the machine needs for the matrix products of an update over real tokens alone, at the throughput
that it reaches on a large product, and for reading the policy's weights once for each token of decoding.
"""

import argparse
import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np


ROOT = Path(__file__).resolve().parents[1]
PAD, EOS, FIRST_WORD = 0, 1, 3
EPOCHS = 4
ARMS = ("trl", "ours")


@dataclass(frozen=True)
class Setting:
    """A size of the problem. `padded`: completions of a mean length of a quarter of `response`, the longest of `response`
    tokens; else all have `response` tokens. Prompts all have `prompt` tokens."""

    vocab: int
    batch: int
    prompt: int
    response: int
    padded: bool
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    # The least speed-up and the least ratio of memory that are aimed at.
    time_target: float | None = None
    memory_target: float | None = None

    def lengths(self, seed: int) -> np.ndarray:
        """Tokens of each completion, its EOS included."""
        if not self.padded:
            return np.full(self.batch, self.response)
        # Exponential, as when every token has the same chance of ending the completion, scaled to the mean.
        draws = np.random.default_rng([seed, 1]).exponential(size=self.batch - 1)
        total = self.batch * self.response // 4 - self.response
        lengths = np.clip(np.round(draws * total / draws.sum()), 1, self.response - 1).astype(int)
        while lengths.sum() != total:
            step = int(np.sign(total - lengths.sum()))
            free = np.flatnonzero((lengths + step >= 1) & (lengths + step < self.response))
            lengths[free[np.argmax(lengths[free])] if step < 0 else free[np.argmin(lengths[free])]] += step
        return np.concatenate([[self.response], lengths])

    def __str__(self) -> str:
        size = f"{self.vocab // 1000}k / {self.batch} / {self.prompt} / {self.response}"
        size += ", padded" if self.padded else ""
        return size if (self.hidden, self.layers) == (128, 4) else f"{size}, hidden {self.hidden}, {self.layers} layers"


SETTINGS = {
    "1k": Setting(1000, 32, 128, 128, False, time_target=1.3, memory_target=1.8),
    "1k-padded": Setting(1000, 32, 128, 128, True, time_target=2.2, memory_target=2),
    "50k": Setting(50_000, 32, 32, 128, False, time_target=2.8, memory_target=6),
    "50k-padded": Setting(50_000, 32, 128, 128, True, time_target=8, memory_target=6),
    "150k": Setting(150_000, 8, 32, 128, False, time_target=3.5, memory_target=5),
    "wide": Setting(50_000, 8, 128, 128, True, 512, 8, 8, time_target=2, memory_target=3),
    "tiny": Setting(1000, 8, 8, 16, True, 16, 2, 2),  # to see that all this works
}


# --- the floor -----------------------------------------------------------------------------------------------------


def update_flops(setting: Setting, lengths: np.ndarray, layer_weights: int) -> float:
    """Floating-point operations of the matrix products of one update, over real tokens alone.

    A forward pass of the backbone over a row of L tokens takes 2 * layers * (layer_weights * L + hidden * L * (L + 1)): each
    weight is used once a token, and a token attends to itself and those before it, in two products of `hidden` each. The
    head takes 2 * hidden * vocab a completion token. An update decodes (a forward pass of the policy, head included), reads
    the completions with the reference (head included), the value and the reward model, and takes EPOCHS passes forward and
    backward, at three times the forward pass, through the policy, head included, and the value model.
    """
    rows = setting.prompt + lengths
    backbone = 2 * setting.layers * (layer_weights * rows.sum() + setting.hidden * (rows * (rows + 1)).sum())
    head = 2 * setting.hidden * setting.vocab * lengths.sum()
    return 2 * (backbone + head) + 2 * backbone + EPOCHS * 3 * (2 * backbone + head)


def floor_seconds(
    setting: Setting, lengths: np.ndarray, layer_weights: int, itemsize: int, flops: float, bandwidth: float
) -> float:
    """Seconds for the products at `flops` operations a second, and for reading the policy's weights at `bandwidth` bytes a
    second at each step of decoding."""
    weights = setting.layers * layer_weights + setting.hidden * setting.vocab
    return update_flops(setting, lengths, layer_weights) / flops + int(lengths.max()) * weights * itemsize / bandwidth


def throughput(device: str, dtype_name: str) -> tuple[float, float]:
    """What this machine reaches: operations a second in a large matrix product, bytes a second in reading memory."""
    import torch

    dtype, size = getattr(torch, dtype_name), 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    memory = torch.ones(2**27 if device == "cpu" else 2**30, dtype=torch.float32, device=device)

    def seconds(run) -> float:
        times = []
        for _ in range(9):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times.append(time.perf_counter() - start)
        return median(times[2:])

    return 2 * size**3 / seconds(lambda: a @ b), memory.nbytes / seconds(memory.sum)


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


# --- one run -------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds of each phase of each update. What is not generation or scoring is optimisation."""

    def __init__(self, device: str):
        self.device = device
        self.updates: list[dict[str, float]] = []
        self.marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        synchronize(self.device)
        self.marks[name] = time.perf_counter()

    def end_of_update(self) -> None:
        self.mark("end")
        marks = self.marks
        if "start" in marks:
            self.updates.append(
                {
                    "generation": marks["generated"] - marks["generate"],
                    "scoring": marks["scored"] - marks["generated"],
                    "optimisation": marks["end"] - marks["scored"] + marks["generate"] - marks["start"],
                    "total": marks["end"] - marks["start"],
                }
            )
        self.marks = {"start": marks["end"]}


def fingerprint(input_ids, lengths: np.ndarray, prompt: int) -> str:
    """Of the prompts and completions, the padding left out."""
    rows = [row[: prompt + n].tolist() for row, n in zip(input_ids.cpu(), lengths, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def run(arm: str, setting: Setting, family: str, updates: int, seed: int, device: str, bf16: bool) -> dict:
    """Train for one update to warm up and `updates` more, in this process. Returns times, memory and what was trained on."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    def model(auto_class, number):
        torch.manual_seed(seed + number)
        config = AutoConfig.for_model(
            family,
            vocab_size=setting.vocab,
            hidden_size=setting.hidden,
            intermediate_size=4 * setting.hidden,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            max_position_embeddings=setting.prompt + setting.response,
            num_labels=1,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
        )
        return auto_class.from_config(config, dtype=torch.bfloat16 if bf16 else torch.float32).to(device)

    lengths = setting.lengths(seed)
    words = np.random.default_rng([seed, 2])
    completions = words.integers(FIRST_WORD, setting.vocab, (setting.batch, setting.response))
    if setting.padded:
        completions[range(setting.batch), lengths - 1] = EOS
    completions = torch.tensor(completions, device=device)
    prompts = words.integers(FIRST_WORD, setting.vocab, (setting.batch, setting.prompt)).tolist()
    # One batch of prompts over and over: in whatever order a trainer takes the rows, the completions' lengths are the same.
    # TRL's trainer takes too many steps at the end of its data, so there is more than is used.
    dataset = Dataset.from_dict({"input_ids": [prompts[0]] * (setting.batch * (updates + 3))})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": PAD, "<eos>": EOS, "<unk>": 2}, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    arguments = {
        "model": model(AutoModelForCausalLM, 0),
        "ref_model": model(AutoModelForCausalLM, 1),
        "reward_model": model(AutoModelForSequenceClassification, 2),
        "value_model": model(AutoModelForSequenceClassification, 3),
        "processing_class": tokenizer,
        "train_dataset": dataset,
        "eval_dataset": dataset,
    }
    stopwatch, steps, seen = Stopwatch(device), [], []
    register_optimizer_step_post_hook(lambda *_: steps.append(1))
    with tempfile.TemporaryDirectory() as directory:
        config = {
            "output_dir": directory,
            "per_device_train_batch_size": setting.batch,
            "total_episodes": setting.batch * (updates + 1),
            "num_ppo_epochs": EPOCHS,
            "response_length": setting.response,
            "stop_token": "eos" if setting.padded else None,
            "temperature": 1.0,
            # TRL's trainer ignores these two.
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "num_sample_generations": 0,
            "disable_tqdm": True,
            "seed": seed,
        }
        make = _trl_trainer if arm == "trl" else _our_trainer
        trainer = make(arguments, config, completions, stopwatch, seen)
        gc.collect()
        base = _memory(device, reset=True)
        trainer.train()
        peak = _memory(device, reset=False)
    if len(steps) != EPOCHS * (updates + 1):
        raise RuntimeError(f"{arm} took {len(steps)} optimizer steps, where {EPOCHS * (updates + 1)} were due.")
    backbone = arguments["value_model"].base_model
    per_layer = sum(p.numel() for name, p in backbone.named_parameters() if ".layers." in f".{name}." and p.ndim == 2)
    return {
        "updates": stopwatch.updates,
        "memory": peak - base,
        "tokens": sorted({fingerprint(ids, lengths, setting.prompt) for ids in seen}),
        "layer_weights": per_layer // setting.layers,
    }


def _memory(device: str, reset: bool) -> int:
    """Bytes in use (with `reset`, which also forgets the peak so far) or at the peak."""
    if device == "cuda":
        import torch

        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmRSS:" if reset else "VmHWM:"
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


# Sampling is done as ever and its outcome replaced by the given completions, so that the work is all there.


def _trl_trainer(arguments: dict, config: dict, completions, stopwatch: Stopwatch, seen: list):
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    draw, generate, forward = torch.multinomial, module.batch_generation, module.forward
    step = 0

    def forced_multinomial(probabilities, num_samples, **kwargs):
        nonlocal step
        draw(probabilities, num_samples, **kwargs)
        step += 1
        return completions[:, step - 1 : step]

    def timed_generation(*args):
        nonlocal step
        step = 0
        stopwatch.mark("generate")
        output = generate(*args)
        stopwatch.mark("generated")
        seen.append(output[0])
        return output

    def watched_forward(model, *args):
        if model is trainer.model and "scored" not in stopwatch.marks:
            stopwatch.mark("scored")
        return forward(model, *args)

    class Trainer(PPOTrainer):
        def log(self, *args, **kwargs):
            stopwatch.end_of_update()

    torch.multinomial = forced_multinomial
    module.batch_generation, module.forward = timed_generation, watched_forward
    trainer = Trainer(args=PPOConfig(**config), **arguments)
    return trainer


def _our_trainer(arguments: dict, config: dict, completions, stopwatch: Stopwatch, seen: list):
    import torch

    from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel, ppo_trainer, rollout

    reward_model = TokenRewardModel.from_backbone(arguments["reward_model"], copy=False)
    torch.nn.init.normal_(reward_model.token_score.weight, std=0.02)
    sample = rollout.sample
    batch, length = completions.shape

    def numbered(seed, rows, length):
        """In place of random numbers, where in the batch each of them is."""
        places = torch.tensor(list(rows)).unsqueeze(1) * length + torch.arange(length)
        return (places.double() + 0.5) / (batch * length)

    def forced_sample(logits, temperature, uniform):
        sample(logits, temperature, uniform)
        tokens = completions.flatten()[(uniform * batch * length).long().to(completions.device)]
        logps = torch.log_softmax(logits.float() / temperature, -1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        return tokens, logps

    class Trainer(FineGrainedPPOTrainer):
        def _generate(self, *args):
            stopwatch.mark("generate")
            output = super()._generate(*args)
            stopwatch.mark("generated")
            return output

        def _collect_rollout(self, update):
            output = super()._collect_rollout(update)
            stopwatch.mark("scored")
            seen.append(torch.cat([output.prompt_ids, output.completion_ids], 1))
            return output

        def log(self, logs, *args, **kwargs):
            super().log(logs, *args, **kwargs)
            if "loss" in logs:
                stopwatch.end_of_update()

    ppo_trainer.uniforms, rollout.sample = numbered, forced_sample
    return Trainer(
        args=FineGrainedPPOConfig(**config, logging_steps=EPOCHS), **{**arguments, "reward_model": reward_model}
    )


# --- all runs ------------------------------------------------------------------------------------------------------


def measure(arm: str, name: str, options: argparse.Namespace) -> dict:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--worker", arm, "--settings", name, "--family", options.family]
    command += ["--updates", str(options.updates), "--seed", str(options.seed), *(["--bf16"] if options.bf16 else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def verdict(value: float, target: float | None) -> str:
    if target is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({'≥' if value >= target else '**<**'} {target})"


def report(results: dict[str, dict[str, list[dict]]], options: argparse.Namespace, speeds: tuple[float, float]) -> str:
    """The tables, in Markdown."""
    times, memory, phases = [], [], []
    for name, runs in results.items():
        setting = SETTINGS[name]
        seconds = {arm: [[u["total"] for u in run["updates"]] for run in runs[arm]] for arm in ARMS}
        ratios = [median(t) / median(o) for t, o in zip(seconds["trl"], seconds["ours"], strict=True)]
        flat = {arm: [s for run in seconds[arm] for s in run] for arm in ARMS}
        lengths, weights = setting.lengths(options.seed), runs["ours"][0]["layer_weights"]
        floor = floor_seconds(setting, lengths, weights, 2 if options.bf16 else 4, *speeds)
        ours = median(flat["ours"]) / floor
        times.append(
            f"| {setting} | {spread(flat['trl'])} | {spread(flat['ours'])} | {verdict(median(ratios), setting.time_target)} | "
            f"{min(ratios):.2f}–{max(ratios):.2f} | {floor:.2f} | {median(flat['trl']) / floor:.1f} | "
            f"{ours:.2f}{'' if ours <= 2 else ' (**> 2**)'} |"
        )
        mib = {arm: [run["memory"] / 2**20 for run in runs[arm]] for arm in ARMS}
        ratio = median(mib["trl"]) / median(mib["ours"])
        memory.append(
            f"| {setting} | {spread(mib['trl'], 0)} | {spread(mib['ours'], 0)} | {verdict(ratio, setting.memory_target)} |"
        )
        for arm in ARMS:
            parts = [
                spread([u[part] for run in runs[arm] for u in run["updates"]])
                for part in ("generation", "scoring", "optimisation")
            ]
            phases.append(f"| {setting} | {'TRL' if arm == 'trl' else 'ours'} | {' | '.join(parts)} |")
    return "\n".join(
        [
            "| vocabulary / batch / prompt / response | TRL, s an update | ours, s an update | TRL ÷ ours (aim) | range | floor, s "
            "| TRL ÷ floor | ours ÷ floor |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *times,
            "",
            "| peak memory above the loaded models, MiB | TRL | ours | TRL ÷ ours (aim) |",
            "| --- | --- | --- | --- |",
            *memory,
            "",
            "| seconds by phase | | generation | scoring | optimisation |",
            "| --- | --- | --- | --- | --- |",
            *phases,
            "",
        ]
    )


def about(options: argparse.Namespace, device: str, speeds: tuple[float, float]) -> str:
    import torch
    import transformers
    import trl

    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    command = " ".join(["python benchmarks/ppo_step.py", *sys.argv[1:]])
    return (
        f"`{command}`, {date.today()}, seed {options.seed}. {where}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, TRL {trl.__version__}. {options.family}, "
        f"{'bfloat16' if options.bf16 else 'float32'}, {EPOCHS} epochs of one mini-batch, dense rewards on ours and one score "
        "on TRL's; both without gradient checkpointing and mixed precision, which TRL's trainer ignores. "
        f"{options.repeats} processes for each trainer and setting, in turns, {options.updates} updates each after one to "
        f"warm up. Median (least–greatest). A large product reaches {speeds[0] / 1e9:.0f} GFLOP/s here, reading memory "
        f"{speeds[1] / 1e9:.0f} GB/s. Padded: completions have 32 tokens on average and 128 at most. Memory holds gradients "
        "and the optimizer's moments, the same for both."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:-1])
    parser.add_argument("--family", default="llama", choices=["llama", "gpt_neox"])
    parser.add_argument("--repeats", type=int, default=3, help="Processes for each trainer and setting.")
    parser.add_argument("--updates", type=int, default=2, help="Updates that are measured in each process.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="Weights in bfloat16.")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "ppo_step.md")
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    from trl_tokenreward._trl import TRL_HAS_PPO

    if not TRL_HAS_PPO:
        sys.exit("This version of TRL has no PPOTrainer to compare with: pip install trl==1.12.0")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.worker:
        [name] = options.settings
        result = run(
            options.worker, SETTINGS[name], options.family, options.updates, options.seed, device, options.bf16
        )
        print(json.dumps(result))
        return

    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    speeds = throughput(device, "bfloat16" if options.bf16 else "float32")
    results: dict[str, dict[str, list[dict]]] = {}
    with console.status("") as status:
        for name in options.settings:
            results[name] = {arm: [] for arm in ARMS}
            for repeat in range(options.repeats):
                for arm in ARMS if repeat % 2 == 0 else reversed(ARMS):
                    status.update(f"{SETTINGS[name]}: {arm}, {repeat + 1} of {options.repeats}")
                    result = measure(arm, name, options)
                    results[name][arm].append(result)
                    console.print(
                        f"{SETTINGS[name]}: {arm}, {median(u['total'] for u in result['updates']):.2f} s an update, "
                        f"{result['memory'] / 2**20:.0f} MiB"
                    )
            tokens = {token for arm in ARMS for result in results[name][arm] for token in result["tokens"]}
            if len(tokens) != 1:
                sys.exit(f"{SETTINGS[name]}: the trainers did not train on the same tokens.")
    text = report(results, options, speeds)
    console.print(Markdown(text))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        f"# One PPO update beside TRL 1.12's\n\n{about(options, device, speeds)}\n\n{text}", encoding="utf-8"
    )
    console.print(f"Written to {options.output}.")


if __name__ == "__main__":
    main()
