"""Runs of both trainers that are killed, or find the disk full, at random moments, and resumed until they are finished.

As a script: `python torture_training.py OUTPUT KIND FAULT SEED` does so with one run and writes a report to
`OUTPUT/report.json`. Every attempt is a process of its own, forked from this one, which has imported all that takes
time. It is a script because the process of a test may have threads, which a fork does not survive.
"""

import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

import ppo_runs
import tiny
from reward_trainer_cases import ROWS
from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer
from trl_tokenreward.utils import checkpoints


FAULTS = ("kill", "kill in a checkpoint", "file limit", "full disk")
# A run is disturbed so often at most, and then left alone.
ATTEMPTS = 6
# TRL's trainer counts tokens from the start of a process.
NOT_REPEATED = (*ppo_runs.NOT_REPEATED, "num_tokens")


def make_ppo(folder: Path) -> Any:
    return ppo_runs.make("terminal", folder, max_steps=32, save_steps=4, save_total_limit=2)


def make_reward(folder: Path) -> Any:
    args = TokenRewardConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=2,
        max_steps=24,
        logging_steps=1,
        save_steps=3,
        save_total_limit=2,
        learning_rate=1e-3,
    )
    model = tiny.causal_lm(attention_dropout=0.1)
    return TokenRewardTrainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tiny.tokenizer())


MAKE = {"ppo": make_ppo, "reward": make_reward}


def outcome(trainer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights, the optimizer's state and the log."""
    tensors = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    logs = [
        {name: value for name, value in entry.items() if not name.endswith(NOT_REPEATED)}
        for entry in trainer.state.log_history
    ]
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, logs


def train(kind: str, folder: Path, results: Path, before_checkpoint: Any = None) -> None:
    """Start the run, or resume it, and write its outcome when it is finished."""
    warnings: list[str] = []
    checkpoints.logger.warning = warnings.append
    trainer = MAKE[kind](folder)
    save, saved = trainer._save_checkpoint, []

    def save_checkpoint(*args: Any) -> None:
        if before_checkpoint is not None:
            before_checkpoint(len(saved) + 1)
        saved.append(seconds(save, *args))

    trainer._save_checkpoint = save_checkpoint
    resume = any(folder.glob("checkpoint-*"))
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:
        if "is whole" not in str(error):
            raise
        warnings.append(str(error))  # even the first one was cut short: start anew
        trainer = MAKE[kind](folder)
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with (results / "warnings.jsonl").open("a") as file:
            file.writelines(json.dumps(warning) + "\n" for warning in warnings)
    tensors, logs = outcome(trainer)
    (results / "seconds.json").write_text(json.dumps(saved))
    save_file(tensors, results / "outcome.safetensors")
    (results / "logs.json").write_text(json.dumps(logs))


def in_child(results: Path, function: Any, *args: Any, kill_after: float | None = None) -> int:
    """Call a function in a forked process. Gives its exit status, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (results / "output.txt").open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            function(*args)
            status = 0
        except BaseException as error:
            print(f"ENDED BY {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
        else:
            return 0
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_in_checkpoint(number: int, delay: float) -> Any:
    """Kill the process so many seconds after it has begun to write a checkpoint."""

    def before_checkpoint(count: int) -> None:
        if count == number:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return before_checkpoint


def limit_files(number: int, size: int) -> Any:
    """Let no file grow beyond a size from a checkpoint on: writing fails as on a full disk."""

    def before_checkpoint(count: int) -> None:
        if count == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return before_checkpoint


def seconds(function: Any, *args: Any) -> float:
    start = time.monotonic()
    function(*args)
    return time.monotonic() - start


def mount(folder: Path, options: str, check: bool = True) -> None:
    subprocess.run(["mount", "-o", options, "-t", "tmpfs", "tmpfs", str(folder)], check=check, capture_output=True)


def main() -> None:
    output, kind, fault, seed = Path(sys.argv[1]), *sys.argv[2:5]
    draw = random.Random(f"{kind} {fault} {seed}")
    whole, folder, results = output / "whole", output / "run", output / "results"
    for path in (output, whole, folder, results):
        path.mkdir(parents=True, exist_ok=True)
    duration = seconds(in_child, whole, train, kind, whole / "run", whole)
    checkpoint = max((whole / "run").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    files = [path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()]
    statuses, to_save = [], statistics.median(json.loads((whole / "seconds.json").read_text()))
    if fault == "full disk":
        mount(folder, f"size={int(sum(files) * draw.uniform(0.2, 3))}")
    try:
        for attempt in range(ATTEMPTS + 1):
            before_checkpoint, kill_after = None, None
            if attempt == ATTEMPTS:
                if fault == "full disk":
                    mount(folder, "remount,size=1g")
            elif fault == "kill":
                kill_after = draw.uniform(0.1, 1.0) * duration
            elif fault == "kill in a checkpoint":
                before_checkpoint = kill_in_checkpoint(draw.randint(1, 3), draw.uniform(0, to_save))
            elif fault == "file limit":
                before_checkpoint = limit_files(draw.randint(1, 3), draw.randint(0, max(files)))
            elif attempt > 0:
                # Not below what is there, which is an error.
                mount(folder, f"remount,size={int(sum(files) * draw.uniform(0.5, 4))}", check=False)
            arguments = kind, folder, results, before_checkpoint
            statuses.append(in_child(results, train, *arguments, kill_after=kill_after))
            if statuses[-1] == 0:
                break
    finally:
        if fault == "full disk":
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
    report: dict[str, Any] = {"statuses": statuses}
    warnings = results / "warnings.jsonl"
    report["warnings"] = [json.loads(line) for line in warnings.read_text().splitlines()] if warnings.exists() else []
    text = (results / "output.txt").read_text()
    report["endings"] = [line for line in text.splitlines() if line.startswith("ENDED BY")]
    expected, actual = (load_file(path / "outcome.safetensors") for path in (whole, results))
    report["different"] = [name for name in expected if not torch.equal(expected[name], actual[name])]
    report["same_names"] = set(expected) == set(actual)
    expected_logs, logs = (json.loads((path / "logs.json").read_text()) for path in (whole, results))
    report["same_logs"] = logs == expected_logs
    (output / "report.json").write_text(json.dumps(report))
    shutil.rmtree(whole / "run")


if __name__ == "__main__":
    main()
