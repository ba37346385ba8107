"""Time and memory of one PPO update: TRL's PPOTrainer and FineGrainedPPOTrainer on the same models, prompts and
completions.

    python benchmarks/ppo_step.py                                       # all settings
    python benchmarks/ppo_step.py --settings 50k-padded --repeats 5     # one of them
    python benchmarks/ppo_step.py --settings 50k-full --hidden 1024 --layers 16 --heads 16 --intermediate 4096

It needs TRL 1.12, the last version with a PPOTrainer. Every measurement runs in a process of its own, the two trainers
in turn. Both sample for real; what they draw is then replaced by the same tokens, so that they do the same work, and
the run fails if they trained on other tokens or took other numbers of optimizer steps. It runs on a GPU where there is
one.

The floor is the time that the matrix products of an update and the weights read in decoding would take alone, at the
throughput that this machine shows in between: see `floor_seconds`.

The table is printed and written to `benchmarks/results/ppo_step.md`.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


RESULTS = Path(__file__).resolve().parent / "results" / "ppo_step.md"
ARMS = ("trl", "ours")
# What is run when it is named: with LoRA in the policy, each model on a base of its own and the value model trained in
# full, or all models on one base; and a value head on the policy's backbone, in full training and with LoRA.
MORE_ARMS = ("trl-lora", "ours-lora-copies", "ours-lora", "ours-lora-trunk", "ours-trunk")
LORA_RANK = 16
FAMILIES = ("llama", "gpt_neox")
PHASES = ("generation", "scoring", "optimisation", "rest")
MEMORY = ("memory", "with_models")
PAD, EOS = 0, 1
TEMPERATURE = 0.7
NUM_PPO_EPOCHS = 4


@dataclass(frozen=True)
class Setting:
    """The models and data of one measurement. Lengths are in tokens; a `mean_length` below `response`
    makes completions of uneven length."""

    name: str
    vocabulary: int
    batch: int
    prompt: int
    response: int
    mean_length: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    # How many times faster and smaller than TRL ours is to be, and how near to the floor; None where nobody has said.
    speedup_target: float | None = None
    memory_target: float | None = None
    floor_target: float | None = None


SETTINGS = [
    # The shape of SmolLM2-135M, a model that people use; those below are of vocabularies that dwarf their backbones.
    Setting("smollm2", 49_152, 8, 64, 64, 40, 576, 30, 9, 1536),
    Setting("1k-full", 1_000, 32, 128, 128, 128, speedup_target=1.3, memory_target=1.8, floor_target=2.0),
    Setting("1k-padded", 1_000, 32, 128, 128, 32, speedup_target=2.2, memory_target=2.0, floor_target=2.0),
    Setting("50k-full", 50_000, 32, 32, 128, 128, speedup_target=2.8, memory_target=6.0, floor_target=2.0),
    Setting("50k-padded", 50_000, 32, 128, 128, 32, speedup_target=8.0, memory_target=6.0, floor_target=2.0),
    Setting("150k-full", 150_000, 8, 32, 128, 128, speedup_target=3.5, memory_target=5.0, floor_target=2.0),
    Setting("50k-padded-large", 50_000, 8, 128, 128, 32, 512, 8, 8, 2048, 2.0, 3.0, 2.0),
]
# Sizes that flags of the same name may change.
SIZES = [field.name for field in fields(Setting) if field.type is int]


# --- what both trainers are given ----------------------------------------------------------------------------------


def completion_lengths(setting: Setting, seed: int, update: int) -> np.ndarray:
    """Lengths of an update's completions, (B,): geometric, moved until their mean is `mean_length`, the longest
    `response`."""
    if setting.mean_length == setting.response:
        return np.full(setting.batch, setting.response)
    rng = np.random.default_rng([seed, update, 0])
    lengths = rng.geometric(1 / setting.mean_length, setting.batch).clip(1, setting.response)
    longest = lengths.argmax()
    lengths[longest] = setting.response
    others = np.delete(np.arange(setting.batch), longest)
    while (excess := lengths.sum() - setting.batch * setting.mean_length) != 0:
        step = -np.sign(excess)
        lengths[rng.choice(others[lengths[others] != (1 if step < 0 else setting.response)])] += step
    return lengths


def make_prompts(setting: Setting, seed: int, update: int) -> Tensor:
    """Prompts of an update, (B, P), without special tokens."""
    rng = np.random.default_rng([seed, update, 1])
    return torch.from_numpy(rng.integers(EOS + 1, setting.vocabulary, (setting.batch, setting.prompt)))


def make_completions(setting: Setting, seed: int, update: int) -> Tensor:
    """Completions of an update, (B, T). Where lengths are uneven, EOS is the last token of each; PAD follows."""
    rng = np.random.default_rng([seed, update, 2])
    ids = rng.integers(EOS + 1, setting.vocabulary, (setting.batch, setting.response))
    if setting.mean_length < setting.response:
        last = completion_lengths(setting, seed, update)[:, None] - 1
        columns = np.arange(setting.response)
        ids = np.where(columns < last, ids, np.where(columns == last, EOS, PAD))
    return torch.from_numpy(ids)


class PromptsInTurn:
    """A data collator that hands out the prompts of update 0, 1, 2 and so on, whichever rows it is given: each trainer
    shuffles in its own way."""

    def __init__(self, setting: Setting, seed: int):
        self.setting, self.seed, self.update = setting, seed, -1

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        self.update += 1
        ids = make_prompts(self.setting, self.seed, self.update)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def make_model(setting: Setting, family: str, seed: int, **kwargs: Any) -> torch.nn.Module:
    """A model with random weights: a sequence classifier where `num_labels` is given, a causal language model
    elsewhere."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPTNeoXConfig, LlamaConfig

    config = {"llama": LlamaConfig, "gpt_neox": GPTNeoXConfig}[family](
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        intermediate_size=setting.intermediate,
        max_position_embeddings=setting.prompt + setting.response,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        **kwargs,
    )
    torch.manual_seed(seed)
    auto_class = AutoModelForSequenceClassification if "num_labels" in kwargs else AutoModelForCausalLM
    return auto_class.from_config(config)


# --- the floor -----------------------------------------------------------------------------------------------------


def floor_seconds(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    *,
    backbone_weights: int,
    head_weights: int,
    attention_width: int,
    num_ppo_epochs: int,
    flops_per_second: float,
    bytes_per_second: float,
    bytes_per_weight: int = 4,
) -> float:
    r"""The least time that an update's matrix products and its decoding can take. Padding is not counted.

    A pass over n tokens needs

        F(n) = 2 · backbone_weights · n + 2 · attention_width · n (n + 1)

    operations: each token meets each weight once, and attention's two products take 4 · attention_width for every key
    that a query may look at, 1 + 2 + … + n of them. The head takes H(T) = 2 · head_weights · T on the T completion
    tokens. With n = P + T - 1 (no model but the reward model has to read the last token) and E epochs, a backward pass
    being twice a forward pass, a row takes

        [F(n) + H(T)]                  decoding: the prompt, then each token
        + [F(n) + H(T)]                reference
        + F(n) + F(n + 1)              value and reward model
        + 3 E [2 F(n) + H(T)]          policy and value model

    operations. Each decoding step, as many as the longest completion has tokens, reads the policy's weights once. So

        seconds = operations / flops_per_second
                  + max(T) · (backbone_weights + head_weights) · bytes_per_weight / bytes_per_second

    Args:
        prompt_lengths, completion_lengths (`Sequence[int]`):
            P and T of each row, in tokens.
        backbone_weights (`int`):
            Weights of all matrices of one backbone, without the embedding. All models have the same.
        head_weights (`int`):
            Hidden size times vocabulary.
        attention_width (`int`):
            Layers times hidden size.
        num_ppo_epochs (`int`):
            E.
        flops_per_second, bytes_per_second (`float`):
            Throughput of matrix products and of memory.
        bytes_per_weight (`int`, *optional*, defaults to `4`):
            Size of a weight in memory.

    Returns:
        `float`: Seconds.
    """

    def backbone(n: int) -> int:
        return 2 * backbone_weights * n + 2 * attention_width * n * (n + 1)

    operations = 0
    for prompt, completion in zip(prompt_lengths, completion_lengths, strict=True):
        n, head = prompt + completion - 1, 2 * head_weights * completion
        rollout = 2 * (backbone(n) + head) + backbone(n) + backbone(n + 1)
        operations += rollout + 3 * num_ppo_epochs * (2 * backbone(n) + head)
    streamed = max(completion_lengths) * (backbone_weights + head_weights) * bytes_per_weight
    return float(operations / flops_per_second + streamed / bytes_per_second)


def matrix_weights(setting: Setting, family: str) -> tuple[int, int]:
    """Weights of the matrices of the policy's backbone and of its head."""
    with torch.device("meta"):
        model = make_model(setting, family, seed=0)
    head = model.get_output_embeddings()
    weights = {m: m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return sum(weights.values()) - weights[head], weights[head]


def setting_floor(
    setting: Setting, options: argparse.Namespace, flops_per_second: float, bytes_per_second: float
) -> float:
    """Mean floor of the measured updates."""
    backbone_weights, head_weights = matrix_weights(setting, options.family)
    floors = [
        floor_seconds(
            [setting.prompt] * setting.batch,
            [int(n) for n in completion_lengths(setting, options.seed, update)],
            backbone_weights=backbone_weights,
            head_weights=head_weights,
            attention_width=setting.layers * setting.hidden,
            num_ppo_epochs=NUM_PPO_EPOCHS,
            flops_per_second=flops_per_second,
            bytes_per_second=bytes_per_second,
        )
        for update in range(1, options.updates + 1)
    ]
    return statistics.mean(floors)


def machine_throughput(clock: Callable[[], float], bf16: bool) -> tuple[float, float]:
    """Operations a second in a large square matrix product, and bytes a second in reading much memory."""
    device = _device()
    size, number = (8192, 2**28) if device == "cuda" else (2048, 2**26)
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    numbers = torch.ones(number, device=device)

    def seconds(work: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(6):
            start = clock()
            work()
            times.append(clock() - start)
        return statistics.median(times[1:])

    return 2 * size**3 / seconds(lambda: a @ b), 4 * number / seconds(numbers.sum)


# --- one process: one trainer in one setting -----------------------------------------------------------------------


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_clock(name: str) -> Callable[[], float]:
    """Seconds on the wall, or of this process on the CPU; a GPU has finished its work when they are read."""
    read = {"wall": time.perf_counter, "cpu": time.process_time}[name]
    if _device() == "cpu":
        return read

    def synchronized() -> float:
        torch.cuda.synchronize()
        return read()

    return synchronized


class Meter:
    """Reads clock and memory in one run."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.marks: list[dict[str, float]] = [{}]
        self.optimizer_steps = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.optimizer_steps += 1

    def mark(self, event: str) -> None:
        """Note when an event of the current update happened first."""
        if event not in self.marks[-1]:
            self.marks[-1][event] = self.clock()

    def end_update(self) -> None:
        self.mark("end")
        self.marks.append({})

    def phases(self) -> list[dict[str, float]]:
        """Seconds by phase of each update but the first. `rest` lies between the end of the last and the generation."""
        updates = []
        for before, now in zip(self.marks, self.marks[1:-1], strict=False):
            ends = [before["end"], now["generation"], now["scoring"], now["optimisation"], now["end"]]
            seconds = dict(
                zip(("rest", *PHASES[:3]), (b - a for a, b in zip(ends, ends[1:], strict=False)), strict=True)
            )
            updates.append({**seconds, "total": sum(seconds.values())})
        return updates

    def reset_memory(self) -> None:
        gc.collect()
        if _device() == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what building the models has freed must not hide what training takes
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use now
            self.base = self._status("VmRSS")

    def peak_above_base(self) -> float:
        """MiB."""
        peak = torch.cuda.max_memory_allocated() if _device() == "cuda" else self._status("VmHWM")
        return (peak - self.base) / 2**20

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Script:
    """The completions that a run is made to sample, and what was trained on."""

    def __init__(self, setting: Setting, seed: int):
        self.setting, self.seed = setting, seed
        self.trained: list[tuple[Tensor, ...]] = []

    def begin(self, update: int) -> None:
        self.completions = make_completions(self.setting, self.seed, update).to(_device())

    def fingerprint(self) -> str:
        """Of prompts, completions and their masks in all updates."""
        digest = hashlib.sha256()
        for tensors in self.trained:
            for x in tensors:
                digest.update(x.long().cpu().numpy().tobytes())
        return digest.hexdigest()


def trl_trainer(script: Script, meter: Meter, config: dict[str, Any], **kwargs: Any) -> Any:
    """TRL's PPOTrainer, made to sample what the script says."""
    import trl.experimental.ppo.ppo_trainer as module

    generate, batch_generation, forward, multinomial = (
        module.generate,
        module.batch_generation,
        module.forward,
        torch.multinomial,
    )
    place = {"update": 0, "row": 0, "t": 0}

    def forced_multinomial(probabilities: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        drawn = multinomial(probabilities, *args, **kwargs)
        tokens = script.completions[place["row"] : place["row"] + len(drawn), place["t"], None]
        place["t"] += 1
        return tokens

    def forced_generate(model: Any, queries: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        place["t"] = 0
        torch.multinomial = forced_multinomial
        try:
            return generate(model, queries, *args)
        finally:
            torch.multinomial = multinomial
            place["row"] += len(queries)

    def timed_generation(model: Any, queries: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        script.begin(place["update"])
        place["update"], place["row"] = place["update"] + 1, 0
        meter.mark("generation")
        query_responses, logits = batch_generation(model, queries, *args)
        meter.mark("scoring")
        completions = query_responses[:, queries.shape[1] :]
        script.trained.append((queries, queries != PAD, completions, completions != PAD))
        return query_responses, logits

    def noticed_forward(model: Any, *args: Any) -> Any:
        if isinstance(model, module.PolicyAndValueWrapper):  # the rollout calls it with single models
            meter.mark("optimisation")
        return forward(model, *args)

    module.generate, module.batch_generation, module.forward = forced_generate, timed_generation, noticed_forward

    class Trainer(module.PPOTrainer):
        def log(self, *args: Any, **kwargs: Any) -> None:
            super().log(*args, **kwargs)
            meter.end_update()

    return Trainer(args=module.PPOConfig(**config), **kwargs)


def force_our_completions(script: Script) -> None:
    """Make our sampling return the script's tokens with their log-probabilities, after it has done its own work.

    The random number of each draw says which row and column it is for.
    """
    from trl_tokenreward.ppo import collector, sampling

    cells = script.setting.batch * script.setting.response
    real_uniforms, real_sample = sampling.uniforms, sampling.sample

    def uniforms(seed: tuple[int, ...], rows: range, length: int) -> Tensor:
        real_uniforms(seed, rows, length)
        cell = torch.arange(rows.start * length, rows.stop * length, dtype=torch.float64)
        return ((cell + 0.5) / cells).view(len(rows), length)

    def sample(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        drawn, drawn_logps = real_sample(logits, temperature, uniform)
        tokens = script.completions.flatten()[(uniform * cells).long()]
        # The normaliser follows from what was drawn: another pass over the vocabulary would be work that is not ours.
        picked = logits.gather(1, torch.stack([tokens, drawn], dim=1)).float() / temperature
        return tokens, drawn_logps + picked[:, 0] - picked[:, 1]

    sampling.uniforms = collector.uniforms = uniforms
    sampling.sample = sample


def our_trainer(script: Script, meter: Meter, config: dict[str, Any], **kwargs: Any) -> Any:
    """Our FineGrainedPPOTrainer, made to sample what the script says."""
    from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel
    from trl_tokenreward.ppo.collector import RolloutCollector

    force_our_completions(script)

    class Collector(RolloutCollector):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            meter.mark("generation")
            completions = super().generate(*args, **kwargs)
            meter.mark("scoring")
            return completions

    class Trainer(FineGrainedPPOTrainer):
        _collector_class = Collector

        def collect_rollout(self, update: int) -> Any:
            script.begin(update)
            rollout = super().collect_rollout(update)
            ids, mask = rollout.completion_ids, rollout.completion_mask
            script.trained.append((rollout.prompt_ids, rollout.prompt_mask, ids.masked_fill(mask == 0, PAD), mask))
            meter.mark("optimisation")
            return rollout

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log(logs, *args, **kwargs)
            if "loss" in logs:  # not the summary of the run
                meter.end_update()

    reward_model = TokenRewardModel.from_backbone(kwargs.pop("reward_model"), copy=False)
    torch.nn.init.normal_(reward_model.token_score.weight, std=0.02)
    if "peft_config" in kwargs:
        reward_model = lora_reward_model(reward_model)
    config = {**config, "logging_steps": NUM_PPO_EPOCHS}  # once an update, as TRL does
    return Trainer(args=FineGrainedPPOConfig(**config), reward_model=reward_model, **kwargs)


def lora_config(**kwargs: Any) -> Any:
    from peft import LoraConfig

    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=LORA_RANK, target_modules=layers, **kwargs)


def lora_reward_model(model: Any) -> Any:
    from peft import get_peft_model

    model = get_peft_model(model.requires_grad_(False), lora_config(modules_to_save=["score", "token_score"]))
    return model.requires_grad_(False)


def given_models(setting: Setting, family: str, seed: int, arm: str) -> dict[str, Any]:
    """The models that a trainer is given. With LoRA, the reward model has the policy's base."""
    models = {"model": make_model(setting, family, seed)}
    if "lora" not in arm:
        models["ref_model"] = make_model(setting, family, seed)
        models["reward_model"] = make_model(setting, family, seed + 1, num_labels=1)
    else:
        models |= {"peft_config": lora_config(task_type="CAUSAL_LM"), "ref_model": None}
        labels = {"num_labels": 1} if arm.startswith("trl") else {}
        models["reward_model"] = make_model(setting, family, seed, **labels)
    if arm in ("trl", "trl-lora", "ours"):
        models["value_model"] = make_model(setting, family, seed + 2, num_labels=1)
    return models


def run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Trains with one trainer, and returns the measurements that `job` asks for."""
    import peft  # noqa: F401  what is imported now does not count as the models' memory
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    import trl_tokenreward.ppo.trainer  # noqa: F401

    torch.set_num_threads(job["threads"])
    setting, seed, updates = Setting(**job["setting"]), job["seed"], job["updates"] + 1
    # TRL takes an optimizer step for every micro-batch at the end of its data, so the data must not end.
    num_rows = (updates + 2) * setting.batch
    dataset = Dataset.from_dict({"input_ids": [[EOS + 1] * setting.prompt] * num_rows})
    vocabulary = {"<pad>": PAD, "<eos>": EOS, "<unk>": 2}
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "output_dir": folder,
            "seed": seed,
            "per_device_train_batch_size": setting.batch,
            "gradient_accumulation_steps": 1,
            "num_mini_batches": 1,
            "num_ppo_epochs": NUM_PPO_EPOCHS,
            "local_rollout_forward_batch_size": 64,
            "total_episodes": updates * setting.batch,
            "response_length": setting.response,
            "stop_token": "eos",
            "temperature": TEMPERATURE,
            "kl_coef": 0.05,
            "gradient_checkpointing": job["gradient_checkpointing"],
            "bf16": job["bf16"],
            "num_sample_generations": 0,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": _device() == "cpu",
        }
        meter, script = Meter(make_clock(job["clock"])), Script(setting, seed)
        family, arm = job["family"], job["arm"]
        config |= {"share_value_backbone": True} if arm.endswith("-trunk") else {}
        config |= {"share_base": False} if arm.endswith("-copies") else {}
        meter.reset_memory()
        before_models = meter.base
        trainer = {"trl": trl_trainer, "ours": our_trainer}[arm.partition("-")[0]](
            script,
            meter,
            config,
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
                pad_token="<pad>",
                eos_token="<eos>",
                padding_side="left",
            ),
            **given_models(setting, family, seed, arm),
            train_dataset=dataset,
            eval_dataset=dataset,
            data_collator=PromptsInTurn(setting, seed),
        )
        meter.reset_memory()
        of_models = (meter.base - before_models) / 2**20
        trainer.train()
        return {
            "phases": meter.phases(),
            "memory": meter.peak_above_base(),
            "with_models": of_models + meter.peak_above_base(),
            "optimizer_steps": meter.optimizer_steps,
            "tokens": script.fingerprint(),
        }


# --- the parent process --------------------------------------------------------------------------------------------


def run_in_process(job: dict[str, Any]) -> dict[str, Any]:
    """The measurements of one process. With `job["memory"]`, freed memory goes back to the system at once, so that the
    peak is of what is in use; by itself, the C library keeps much of it. That takes time, so times are not of such
    processes."""
    given_back = {f"MALLOC_{name}_THRESHOLD_": "65536" for name in ("MMAP", "TRIM")} if job["memory"] else {}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", **given_back}
        done = subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps(job), "--output", str(output)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            what = f"{job['arm']} in {job['setting']['name']}"
            raise SystemExit(f"{what} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}")
        return json.loads(output.read_text())


def run_all(
    settings: list[Setting], options: argparse.Namespace, console: Console
) -> tuple[dict[tuple[str, str], list], tuple[float, float]]:
    """Results of each (setting, arm), one for each repeat, and the machine's throughput.

    The throughput is the median of measurements in between: what else runs on a machine has a part in it.
    """
    throughputs, clock = [], make_clock(options.clock)
    of_memory: dict[tuple[str, str], dict[str, Any]] = {}
    results: dict[tuple[str, str], list] = {(s.name, arm): [] for s in settings for arm in options.arms}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(results) * options.repeats)
        for repeat in range(options.repeats):
            for setting in settings:
                progress.update(task, description="throughput of the machine")
                throughputs.append(machine_throughput(clock, options.bf16))
                # In turn, so that neither always has the cooler machine.
                for arm in options.arms if repeat % 2 == 0 else options.arms[::-1]:
                    progress.update(task, description=f"{setting.name}: {arm}, repeat {repeat + 1}")
                    names = ("family", "updates", "seed", "bf16", "gradient_checkpointing", "threads", "clock")
                    common = {name: getattr(options, name) for name in names}
                    job = {"setting": asdict(setting), "arm": arm, **common}
                    result = run_in_process({**job, "memory": False})
                    if _device() == "cpu" and repeat == 0:
                        # The peak is that of one update.
                        of_memory[setting.name, arm] = run_in_process({**job, "memory": True, "updates": 0})
                    result |= {name: of_memory[setting.name, arm][name] for name in MEMORY} if of_memory else {}
                    results[setting.name, arm].append(result)
                    seconds = statistics.median(u["total"] for u in result["phases"])
                    progress.console.print(
                        f"{setting.name}: {arm}, repeat {repeat + 1}: {seconds:.2f} s an update, "
                        f"{result['memory']:.0f} MiB"
                    )
                    progress.advance(task)
    flops, bandwidth = (statistics.median(column) for column in zip(*throughputs, strict=True))
    return results, (flops, bandwidth)


def check_same_work(settings: list[Setting], options: argparse.Namespace, results: dict[tuple[str, str], list]) -> None:
    """Raise a `SystemExit` where the runs of a setting did different work."""
    for setting in settings:
        for quantity in ("tokens", "optimizer_steps"):
            seen = {arm: {r[quantity] for r in results[setting.name, arm]} for arm in options.arms}
            if len(set.union(*seen.values())) != 1:
                raise SystemExit(
                    f"{setting.name}: the runs differ in {quantity}, so their times do not compare: {seen}"
                )


def spread(values: Sequence[float], digits: int = 2) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def ratio_to_target(ratio: float, target: float | None, at_most: bool = False) -> str:
    if target is None:
        return "–"
    met = ratio <= target if at_most else ratio >= target
    return f"{'≤' if at_most else '≥'} {target:g}: {'met' if met else 'missed'}"


def make_tables(
    settings: list[Setting],
    options: argparse.Namespace,
    results: dict[tuple[str, str], list],
    throughput: tuple[float, float],
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    updates, targets, phases = [], [], []
    both = set(ARMS) <= set(options.arms)
    for setting in settings:
        runs = {arm: results[setting.name, arm] for arm in options.arms}
        totals = {arm: [u["total"] for r in runs[arm] for u in r["phases"]] for arm in runs}
        memory = {arm: statistics.median(r["memory"] for r in runs[arm]) for arm in runs}
        floor = setting_floor(setting, options, *throughput)
        to_floor = {arm: statistics.median(totals[arm]) / floor for arm in runs}
        row = [setting.name, *(spread(totals[arm]) for arm in runs)]
        if both:
            medians = [[statistics.median(u["total"] for u in r["phases"]) for r in runs[arm]] for arm in ARMS]
            speedups = [theirs / ours for theirs, ours in zip(*medians, strict=True)]
            memory_ratio = memory["trl"] / memory["ours"]
            row.append(spread(speedups))
            targets.append(
                [
                    setting.name,
                    f"{statistics.median(speedups):.2f}",
                    ratio_to_target(statistics.median(speedups), setting.speedup_target),
                    f"{memory_ratio:.2f}",
                    ratio_to_target(memory_ratio, setting.memory_target),
                    f"{to_floor['ours']:.2f}",
                    ratio_to_target(to_floor["ours"], setting.floor_target, at_most=True),
                ]
            )
        row.extend(f"{memory[arm]:.0f}" for arm in runs)
        if both:
            row.append(f"{memory_ratio:.2f}")
        row.extend(f"{statistics.median(r['with_models'] for r in runs[arm]):.0f}" for arm in runs)
        updates.append([*row, f"{floor:.2f}", *(f"{to_floor[arm]:.2f}" for arm in runs)])
        for arm in runs:
            seconds = {p: [u[p] for r in runs[arm] for u in r["phases"]] for p in PHASES}
            phases.append([setting.name, arm, *(spread(seconds[p]) for p in PHASES)])
    header = ["setting", *(f"{arm}, s/update" for arm in options.arms)]
    header += ["speed-up"] * both + [f"{arm}, MiB" for arm in options.arms] + ["memory ratio"] * both
    header += [f"{arm}, models too, MiB" for arm in options.arms]
    header += ["floor, s", *(f"{arm} ÷ floor" for arm in options.arms)]
    tables = [("One update", header, updates)]
    sizes = [[setting.name, *(str(getattr(setting, name)) for name in SIZES)] for setting in settings]
    if both:
        header = ["setting", "speed-up", "target", "memory ratio", "target", "ours ÷ floor", "target"]
        tables.append(("Targets", header, targets))
    tables.append(("Phases, seconds an update", ["setting", "trainer", *PHASES], phases))
    tables.append(("Settings, lengths in tokens", ["setting", *(name.replace("_", " ") for name in SIZES)], sizes))
    return tables


def describe(options: argparse.Namespace, throughput: tuple[float, float]) -> list[str]:
    """The settings and definitions needed to read the tables."""
    device = torch.cuda.get_device_name() if _device() == "cuda" else "CPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    clock = "wall clock" if options.clock == "wall" else "CPU seconds"
    memory = "allocated on the GPU" if _device() == "cuda" else "resident"
    matrices = "bfloat16" if options.bf16 else "float32"
    checkpointing = "with" if options.gradient_checkpointing else "without"
    precision = "mixed precision, which TRL's trainer ignores" if options.bf16 else "float32"
    return [
        f"`{options.command}`, {date.today()}. {versions}; {device}, threads: {options.threads}.",
        f"{options.family} models with random weights; {precision}, {checkpointing} gradient checkpointing (TRL's "
        "trainer ignores `bf16`, `gradient_checkpointing` and `max_grad_norm`; ours clips gradients at its default). "
        f"Batch = micro-batch, {NUM_PPO_EPOCHS} epochs, one optimizer step each. Ours has dense token rewards, TRL's a "
        f"terminal one. The same prompts and completions in both, checked.",
        f"Repeats: {options.repeats}, each in a process of its own; measured updates in each: {options.updates}, after "
        f"one that is not measured; {clock}, median and range. The speed-up is the median, and the range, of each "
        "repeat's ratio.",
        f"Memory is the peak above that of the loaded models ({memory}); gradients and the optimizer's state are part "
        "of it. With the models too, it is the peak above that of a process that has none. On a CPU it is measured in "
        "a process that gives freed memory back at once.",
        f"Floor: the matrix products of an update at {throughput[0] / 1e9:.0f} GFLOP/s ({matrices}, measured on a "
        f"square product) and the weights that decoding reads at {throughput[1] / 1e9:.1f} GB/s. Small models make "
        f"much of the vocabulary: the gains shrink as the backbone grows.",
    ]


def to_markdown(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [setting.name for setting in SETTINGS]
    listed = "\n".join(f"  {s.name:<17}{', '.join(f'{name} {getattr(s, name)}' for name in SIZES)}" for s in SETTINGS)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"settings:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings", nargs="+", choices=names, default=names, metavar="NAME", help="Default: all.")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *MORE_ARMS], default=ARMS, help="Default: trl and ours.")
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="Architecture. Default: llama.")
    parser.add_argument("--repeats", type=int, default=3, help="Processes for each trainer and setting. Default: 3.")
    parser.add_argument("--updates", type=int, default=2, help="Measured updates in each process. Default: 2.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, prompts, completions and lengths. Default: 0.")
    parser.add_argument("--threads", type=int, default=1, help="Threads on the CPU. Default: 1.")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="`cpu` counts the seconds of the process alone: for a busy machine, with one thread. Default: wall.",
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="Set `gradient_checkpointing`. TRL's trainer ignores it."
    )
    parser.add_argument("--bf16", action="store_true", help="Set `bf16`. TRL's trainer ignores it.")
    parser.add_argument("--output", type=Path, default=RESULTS, help="Markdown file to write.")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    sizes = parser.add_argument_group("sizes", "Change every chosen setting. A mean length below `response` is uneven.")
    for name in SIZES:
        sizes.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    options = parser.parse_args(argv)
    options.arms = [arm for arm in (*ARMS, *MORE_ARMS) if arm in options.arms]
    options.command = " ".join(["python benchmarks/ppo_step.py", *(sys.argv[1:] if argv is None else argv)])
    for name in ("repeats", "updates", "threads", *SIZES):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if options.clock == "cpu" and _device() == "cuda":
        parser.error("--clock cpu does not see what a GPU does: use --clock wall.")
    return options


def choose_settings(options: argparse.Namespace) -> list[Setting]:
    sizes = {name: value for name in SIZES if (value := getattr(options, name)) is not None}
    chosen = []
    for setting in SETTINGS:
        if setting.name not in options.settings:
            continue
        if sizes:
            # The targets are for the sizes as they stand. Completions of full length stay so.
            lengths = {}
            if setting.mean_length == setting.response and "response" in sizes:
                lengths["mean_length"] = sizes["response"]
            changes = {"speedup_target": None, "memory_target": None, "floor_target": None, **lengths, **sizes}
            setting = replace(setting, **changes)
        least = -(-(setting.response + setting.batch - 1) // setting.batch)
        if not least <= setting.mean_length <= setting.response:
            raise SystemExit(
                f"{setting.name}: --mean-length must be between {least} (one completion of {setting.response} tokens, "
                f"the others of 1) and --response {setting.response}, got {setting.mean_length}."
            )
        chosen.append(setting)
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.worker is not None:
        options.output.write_text(json.dumps(run_worker(options.worker)))
        return
    settings = choose_settings(options)
    from trl_tokenreward._trl import TRL_HAS_PPO

    if any(arm.startswith("trl") for arm in options.arms) and not TRL_HAS_PPO:
        raise SystemExit(
            f"TRL {version('trl')} has no PPOTrainer to compare with: run this with TRL 1.12 (`pip install "
            "trl==1.12.0`), or measure ours alone with `--arms ours`."
        )
    console = Console()
    if not console.is_terminal:
        console.width = 160  # rich would fold the tables to 80 columns
    torch.set_num_threads(options.threads)
    results, throughput = run_all(settings, options, console)
    check_same_work(settings, options, results)

    tables, about = make_tables(settings, options, results, throughput), describe(options, throughput)
    for paragraph in about:
        console.print(paragraph, highlight=False)
    for title, header, rows in tables:
        table = Table(title=title)
        for column in header:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    text = ["# Time and memory of one PPO update", *about, *(to_markdown(*table) for table in tables)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    console.print(f"Written to {options.output}.")


if __name__ == "__main__":
    main()
