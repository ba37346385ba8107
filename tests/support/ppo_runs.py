"""PPO runs that can be repeated: in the test's own process, in one that is killed, on several processes, and resumed.

As a script: `python ppo_runs.py OUTPUT RUN...` trains each run in its folder of OUTPUT and writes there what came out
of it. `--resumed RUN CHECKPOINT`, any number of times, does so in the folder "RUN resumed" with a run that goes on from
a checkpoint.
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import tiny
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, ImplicitReward, TokenRewardModel
from trl_tokenreward.ppo.collector import RolloutCollector


# For processes that run this file as a script.
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parent)))}
VOCAB_SIZE = 8  # few enough that many completions end early
# Metrics that tell of time, and of this call of `train` alone.
NOT_REPEATED = ("eps", "train_loss", "_runtime", "_per_second")


def _models(family: str) -> dict[str, Any]:
    return {
        "model": scaled(tiny.causal_lm(family, seed=0, vocab_size=VOCAB_SIZE)),
        "reward_model": scaled(tiny.sequence_classifier(family, seed=1, vocab_size=VOCAB_SIZE)),
    }


def _terminal(family: str) -> dict[str, Any]:
    """With values that are not 0 at the start, as those of the other runs are."""
    models = _models(family)
    return {**models, "value_model": TokenRewardModel.from_backbone(models["reward_model"])}


def _dense(family: str) -> dict[str, Any]:
    return {**_models(family), "reward_model": token_reward_model(family)}


def _dense_peft(family: str) -> dict[str, Any]:
    models = _dense(family)
    value_model = TokenRewardModel.from_backbone(models["reward_model"])
    return {**models, "value_model": lora(value_model, modules_to_save=["score"]), "peft_config": lora_config()}


def _one_base(family: str) -> dict[str, Any]:
    """The reward model is an adapter of the policy's checkpoint."""
    models = _models(family)
    return {**models, "reward_model": lora_reward_model(models["model"]), "peft_config": lora_config()}


def _callable(family: str) -> dict[str, Any]:
    return {**_models(family), "reward_model": early_letters}


def _several(family: str) -> dict[str, Any]:
    implicit = ImplicitReward(*(scaled(tiny.causal_lm(family, seed, vocab_size=VOCAB_SIZE)) for seed in (5, 6)))
    return {**_dense(family), "reward_model": [token_reward_model(family), implicit, early_letters]}


RUNS: dict[str, dict[str, Any]] = {
    # Four optimizer steps to an update throughout. Neither saves nor logs fall on the ends of updates.
    "terminal": {"models": _terminal, "whiten_rewards": True, "num_mini_batches": 2, "gradient_accumulation_steps": 2},
    "stream": {
        "models": _dense,
        "family": "gpt2",
        "stream": True,
        "log_completions": True,
        "center_rewards": True,
        "sequence_score_coef": 0.5,
        "hold_length": True,
        "num_mini_batches": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
    },
    "peft": {
        "models": _dense_peft,
        "num_mini_batches": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    },
    "one base": {
        "models": _one_base,
        "num_mini_batches": 2,
        "gradient_accumulation_steps": 2,
    },
    "shared trunk": {
        "models": _dense,
        "share_value_backbone": True,
        "num_mini_batches": 2,
        "gradient_accumulation_steps": 2,
        "vf_coef": 0.5,
    },
    "function": {
        "models": _callable,
        "num_mini_batches": 1,
        "num_ppo_epochs": 4,
        "gradient_accumulation_steps": 3,
        "kl_estimator": "k3",
        "bootstrap_truncated": True,
        "missing_eos_penalty": 0.5,
    },
    "several": {
        "models": _several,
        "reward_weights": [1.0, 2.0, 0.25],
        "reward_settings": [{}, {}, {"reward_density": "sequence"}],
        "num_mini_batches": 1,
        "num_ppo_epochs": 4,
    },
    # A target that is soon exceeded.
    "full length": {
        "models": _dense,
        "kl_target": 1e-3,
        "stop_token": None,
        "num_mini_batches": 1,
        "num_ppo_epochs": 4,
    },
}


class RecordingCollector(RolloutCollector):
    """Keeps the prompts of this process."""

    def generate(self, prompts, *args):
        self.prompts_seen = [ids[mask.bool()].tolist() for ids, mask in zip(*prompts, strict=True)]
        return super().generate(prompts, *args)


class RecordingTrainer(FineGrainedPPOTrainer):
    """Keeps its rollouts, and the prompts that this process had a share of in each."""

    _collector_class = RecordingCollector

    def collect_rollout(self, update: int):
        rollout = super().collect_rollout(update)
        self.rollouts = {**getattr(self, "rollouts", {}), update: rollout}
        self.local_prompts = {**getattr(self, "local_prompts", {}), update: self.collector.prompts_seen}
        return rollout


def make(run: str, directory: str | os.PathLike, **overrides: Any) -> RecordingTrainer:
    """The trainer of one run. On several processes each has its share of the same batches."""
    on_cpu = os.environ.get("ACCELERATE_TORCH_DEVICE") != "cpu"
    processes = PartialState(cpu=on_cpu).num_processes
    settings = {
        "output_dir": str(directory),
        "family": "llama",
        "stream": False,
        "callbacks": None,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "local_rollout_forward_batch_size": 3,
        "num_ppo_epochs": 2,
        "max_steps": 16,
        "response_length": 8,
        "stop_token": "eos",
        "temperature": 1.0,
        "learning_rate": 3e-3,
        # A gradient that is 0 but for rounding, such as that of a key's bias, is not to become a step of Adam.
        "adam_epsilon": 1e-5,
        "kl_coef": 0.1,
        "num_sample_generations": 0,
        "logging_steps": 3,
        "save_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 6,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": on_cpu,
        "report_to": "none",
        "disable_tqdm": True,
        **RUNS[run],
        **overrides,
    }
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        settings[name] //= processes
    # The training arguments of an earlier run would have DeepSpeed take models apart while they are made.
    unset_hf_deepspeed_config()
    models = settings.pop("models")(settings.pop("family"))
    train_dataset = prompts(13, seed=0)
    return RecordingTrainer(
        processing_class=tiny.word_tokenizer(),
        train_dataset=train_dataset.to_iterable_dataset() if settings.pop("stream") else train_dataset,
        eval_dataset=prompts(5, seed=1),  # one batch and one row
        callbacks=settings.pop("callbacks"),
        **models,
        args=FineGrainedPPOConfig(**settings),
    )


def prompts(size: int, seed: int) -> Dataset:
    """Prompts of one to seven tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (size,), generator=generator).tolist()
    return Dataset.from_dict(
        {"input_ids": [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]}
    )


def scaled(model: nn.Module, factor: float = 4.0) -> nn.Module:
    """Larger weights than the initial ones, so that what models say differs from token to token."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= factor
    return model


def token_reward_model(family: str = "llama", seed: int = 1) -> TokenRewardModel:
    model = TokenRewardModel.from_backbone(scaled(tiny.sequence_classifier(family, seed, vocab_size=VOCAB_SIZE)))
    nn.init.normal_(model.token_score.weight, std=0.2)
    return model


def lora_reward_model(model: nn.Module) -> nn.Module:
    """A token reward model with an adapter and heads that make a difference, on a copy of a model, as it is loaded."""
    reward_model = lora(TokenRewardModel.from_backbone(model), modules_to_save=["score", "token_score"])
    generator = torch.Generator().manual_seed(7)
    for parameter in reward_model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2, generator=generator)
    return reward_model.requires_grad_(False)


def lora_config(**kwargs: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], **kwargs)


def lora(model: nn.Module, adapter_name: str = "default", **kwargs: Any) -> nn.Module:
    from peft import get_peft_model

    torch.manual_seed(5)
    return get_peft_model(model, lora_config(**kwargs), adapter_name)


def early_letters(completion_ids: list[list[int]], **kwargs: Any) -> list[list[float]]:
    """A reward function: the earlier in the vocabulary, the better."""
    return [[1 - token / VOCAB_SIZE for token in ids] for ids in completion_ids]


def outcome(trainer: RecordingTrainer) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """All that a run has come to: parameters, optimizer, schedule and rollouts; and the log without times."""
    if trainer.is_deepspeed_enabled:  # whose optimizer state is not for other code
        weights, optimizer = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}, {}
    else:
        weights, optimizer = trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for index, state in optimizer.items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["learning_rates"] = torch.tensor(trainer.lr_scheduler.get_last_lr(), dtype=torch.float64)
    for update, rollout in trainer.rollouts.items():
        mask = rollout.completion_mask
        for name, tensor in rollout._asdict().items():
            # What is read off the models in masked places means nothing.
            tensors[f"rollout.{update}.{name}"] = tensor * mask if tensor.shape == mask.shape else tensor
    logs = [
        {name: value for name, value in entry.items() if not name.endswith(NOT_REPEATED)}
        for entry in trainer.state.log_history
    ]
    return {name: _whole(tensor).detach().clone().contiguous() for name, tensor in tensors.items()}, logs


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def load_outcome(directory: Path, rank: int = 0) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What the script has written of a run."""
    logs = json.loads((directory / f"outcome-{rank}.json").read_text())["logs"]
    return load_file(directory / f"outcome-{rank}.safetensors"), logs


def assert_same_logs(logs: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(logs) == len(expected)
    for entry, expected_entry in zip(logs, expected, strict=True):
        assert entry == pytest.approx(expected_entry, rel=1e-4, abs=2e-5)


class KillAt(TrainerCallback):
    """Ends the process as `kill -9` does when a number of optimizer steps is reached."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--resumed", nargs=2, action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill-at", type=int)
    arguments = parser.parse_args()
    jobs = [(run, arguments.output / run, arguments.resume) for run in arguments.runs]
    jobs += [(run, arguments.output / f"{run} resumed", checkpoint) for run, checkpoint in arguments.resumed]
    for run, directory, checkpoint in jobs:
        callbacks = None if arguments.kill_at is None else [KillAt(arguments.kill_at)]
        trainer = make(run, directory, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=checkpoint)
        tensors, logs = outcome(trainer)
        table = trainer.generate_completions()
        rank = trainer.accelerator.process_index
        save_file(tensors, directory / f"outcome-{rank}.safetensors")
        written = {"logs": logs, "table": table.to_dict("records"), "prompts": trainer.local_prompts}
        written["engine"] = trainer.accelerator.distributed_type.value
        (directory / f"outcome-{rank}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main()
