"""The density dial on human edits: the gain of PPO if the same reward model's scores are spread over tokens.

    python benchmarks/density.py prepare --data <folder>    # start policy and reward models
    python benchmarks/density.py run --data <folder> --arm token --seed 1 --kl-coef 0.1 --learning-rate 2e-4
    python benchmarks/density.py all --data <folder>    # prepare, tune every arm, run the seeds, write the results

The folder holds `paradetox-8000.tsv` (the first 8,000 rows of s-nlp/paradetox). Every run has a process of one thread,
and `--jobs` of them run at a time. Each result is one JSON file in the output folder, and runs with a result are not
repeated. All arms start from one policy and answer the same prompts. The judge against the start policy is a classifier
trained on a part of the data that nothing else sees.

Needs TRL 1.12, for its PPOTrainer, and scikit-learn: `pip install -e ".[benchmarks]" trl==1.12.0`.
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import density_report
from density_settings import (
    ABLATION_SEEDS,
    ABLATIONS,
    ARMS,
    BATCH_SIZE,
    EVALUATE_EVERY,
    HIDDEN_SIZE,
    IMPLICIT_ARMS,
    KL_COEFS,
    LAMS,
    LAYERS,
    LEARNING_RATES,
    MAX_LENGTH,
    RESPONSE_LENGTH,
    REWARD_SCALE,
    SEEDS,
    TRL_KL_COEFS,
    TUNING_SEEDS,
    UPDATES,
    VOCABULARY,
    Job,
)


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

# --- one process ---------------------------------------------------------------------------------------------------


def prepare(data: Path, output: Path) -> None:
    """Start policy and reward models, each in a folder of `output`, and their figures in `prepared.json`."""
    import torch
    from datasets import concatenate_datasets
    from transformers import LlamaForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    import demo
    from density_data import GoldJudge, paradetox
    from trl_tokenreward import evaluate_token_rewards
    from trl_tokenreward.data.preprocessing import prepare_dataset
    from trl_tokenreward.utils.statistics import win_rate

    torch.set_num_threads(1)
    parts = paradetox(data / "paradetox-8000.tsv")
    judge = GoldJudge(parts.gold)
    # Only texts to imitate are needed, but the tokenization asks for two sides that differ.
    texts = parts.policy.map(lambda row: {"chosen": row["rejected"] + " ."})
    tokenizer = demo.train_tokenizer(concatenate_datasets([texts, parts.reward]), VOCABULARY)
    sizes = demo.Sizes(
        vocabulary=VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        layers=LAYERS,
        sft_epochs=6,
        reward_epochs=3,
        max_length=MAX_LENGTH,
    )
    run = demo.Run(output, 0, sizes)
    set_seed(0)
    prepared = {
        name: prepare_dataset(part, tokenizer, max_length=MAX_LENGTH, name=name)[0]
        for name, part in {"policy": texts, "reward": parts.reward, "test": parts.test}.items()
    }
    policy = demo.train_policy(tokenizer, prepared["policy"], run)
    tokenizer.save_pretrained(output / "start_policy")
    reward = prepared["reward"], prepared["test"], run
    reward_model, metrics = demo.train_reward_model(
        "reward_model", policy, tokenizer, *reward, unchanged_token_weight=3.0
    )
    evaluate_token_rewards(reward_model, tokenizer, prepared["test"]).save(output / "token_rewards.json")
    _, pulled = demo.train_reward_model(
        "reward_model_zero",
        policy,
        tokenizer,
        *reward,
        unchanged_token_target="zero",
        unchanged_token_weight=0.1,
    )
    sequence_model = LlamaForSequenceClassification.from_pretrained(output / "start_policy", num_labels=1)
    trainer = RewardTrainer(
        model=sequence_model,
        args=RewardConfig(
            **demo.common_settings(run, "sequence_reward_model"),
            num_train_epochs=sizes.reward_epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=50,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            logging_steps=50,
        ),
        train_dataset=parts.reward,
        eval_dataset=parts.test,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    lengths = {
        side: float(np.mean([sum(mask) for mask in prepared["test"][f"{side}_completion_mask"]]))
        for side in ("chosen", "rejected")
    }
    start = make_examiner(parts, judge, policy, tokenizer).start
    known = {
        "parts": {name: len(part) for name, part in parts._asdict().items() if name != "counts"},
        "counts": parts.counts,
        "gold_accuracy": judge.pair_accuracy(parts.test),
        "parameters": policy.num_parameters(),
        "lengths": lengths,
        "human_win_rate": win_rate(judge(start.prompts, list(parts.test["chosen"])), start.scores),
        "reward_model": metrics,
        "reward_model_zero": pulled,
        "sequence_reward_model": trainer.evaluate(),
    }
    (output / "prepared.json").write_text(json.dumps(known, indent=1))


def make_examiner(parts: Any, judge: Any, start_policy: Any, tokenizer: Any) -> Any:
    """The demo's examiner, with the test part's prompts and the gold judge."""
    import demo

    prompts = parts.test.select_columns("prompt")
    return demo.Examiner(start_policy, judge, tokenizer, prompts, RESPONSE_LENGTH, seed=0, batch_size=250)


def point_of(exam: Any, start: Any) -> dict[str, Any]:
    """Gold win rate against the start policy, plain and length-controlled, KL to it in nats, and length in tokens."""
    from trl_tokenreward.utils.statistics import length_controlled_win_rate, pairwise_outcomes

    outcomes = pairwise_outcomes(exam.scores, start.scores)
    return {
        "win_rate": float(np.mean(outcomes)),
        "length_controlled": length_controlled_win_rate(outcomes, np.subtract(exam.lengths, start.lengths)),
        "kl": float(np.mean(exam.kl)),
        "length": float(np.mean(exam.lengths)),
        "gold": float(np.mean(exam.scores)),
        "answers": [list(pair) for pair in zip(exam.prompts, exam.answers, strict=True)][:20],
    }


def learning_curve(examiner: Any, steps_per_update: int) -> Any:
    """A callback for either trainer, which stores the examiner's figures every few updates in `points`."""
    from transformers import TrainerCallback

    class LearningCurve(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.points = [{"update": 0, **point_of(examiner.start, examiner.start)}]

        def on_step_end(self, args, state, control, model=None, **kwargs):
            update, within = divmod(state.global_step, steps_per_update)
            if within == 0 and update % EVALUATE_EVERY == 0:
                exam = examiner.examine(model.policy)
                self.points.append({"update": update, **point_of(exam, examiner.start)})

    return LearningCurve()


def run_job(job: Job, data: Path, output: Path) -> dict[str, Any]:
    """Train one arm, and examine it on the test part's prompts every few updates."""
    import torch
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from density_data import GoldJudge, paradetox

    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "start_policy")
    policy, start = (LlamaForCausalLM.from_pretrained(output / "start_policy", dtype=torch.float32) for _ in range(2))
    parts = paradetox(data / "paradetox-8000.tsv")
    examiner = make_examiner(parts, GoldJudge(parts.gold), start, tokenizer)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in parts.policy]
    settings = {
        "output_dir": str(output / "scratch" / job.name),
        "seed": job.seed,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": BATCH_SIZE,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "total_episodes": job.updates * BATCH_SIZE,
        "response_length": RESPONSE_LENGTH,
        "stop_token": "eos",
        "temperature": 1.0,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "kl_coef": job.kl_coef,
        "vf_coef": 0.5,
        "num_sample_generations": 0,
        "logging_steps": 4,
        **{**ARMS, **IMPLICIT_ARMS}[job.arm],
        **job.options,
    }
    reward_model = output / settings.pop("reward_model", "reward_model")
    arguments = {
        "processing_class": tokenizer,
        "model": policy,
        "train_dataset": Dataset.from_dict({"input_ids": prompts}),
    }
    make = {"TRL": trl_trainer, "implicit": implicit_trainer}.get(job.arm, our_trainer)
    trainer, steps_per_update = make(settings, arguments, output, reward_model)
    curve = learning_curve(examiner, steps_per_update)
    trainer.add_callback(curve)
    begin = time.process_time()
    trainer.train()
    return {
        "job": job._asdict(),
        "seconds": time.process_time() - begin,
        "curve": curve.points,
        "log": trainer.state.log_history,
    }


def our_trainer(
    settings: dict[str, Any], arguments: dict[str, Any], output: Path, reward_model: Path
) -> tuple[Any, int]:
    import torch

    from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel

    # The option `value_model` of `value_density.py` names the folder of a reward model.
    folders = {"reward_model": reward_model}
    folders |= {"value_model": output / settings.pop("value_model")} if "value_model" in settings else {}
    models = {name: TokenRewardModel.from_pretrained(folder, dtype=torch.float32) for name, folder in folders.items()}
    trainer = FineGrainedPPOTrainer(args=FineGrainedPPOConfig(**settings), **models, **arguments)
    return trainer, trainer.schedule.steps_per_update


def implicit_trainer(settings: dict[str, Any], arguments: dict[str, Any], output: Path, model: Path) -> tuple[Any, int]:
    """PPO with the implicit rewards of a model trained with DPO, from a folder that has its beta in `metrics.json`."""
    import torch
    from transformers import LlamaForCausalLM

    from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, ImplicitReward

    trained, start = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (model, output / "start_policy")
    )
    reward = ImplicitReward(trained, start, beta=json.loads((model / "metrics.json").read_text())["beta"])
    trainer = FineGrainedPPOTrainer(args=FineGrainedPPOConfig(**settings), reward_model=reward, **arguments)
    return trainer, trainer.schedule.steps_per_update


def trl_trainer(settings: dict[str, Any], arguments: dict[str, Any], output: Path, _: Path) -> tuple[Any, int]:
    """TRL's PPOTrainer, with its own copy of the start policy as reference. It counts updates as steps."""
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    def load(kind: Any, folder: str) -> Any:
        return kind.from_pretrained(output / folder, dtype=torch.float32)

    settings = {**settings, "logging_steps": 1, "kl_coef": settings["kl_coef"] / REWARD_SCALE}
    trainer = PPOTrainer(
        args=PPOConfig(**settings),
        ref_model=load(LlamaForCausalLM, "start_policy"),
        reward_model=load(LlamaForSequenceClassification, "sequence_reward_model"),
        value_model=load(LlamaForSequenceClassification, "sequence_reward_model"),
        eval_dataset=arguments["train_dataset"].select(range(2)),
        **arguments,
    )
    return trainer, 1


# --- many processes ------------------------------------------------------------------------------------------------


def run_all(jobs: Iterable[Job], data: Path, output: Path, processes: int) -> list[dict[str, Any]]:
    """The results of the jobs, in their order; those that are not there yet are run first."""
    jobs = list(jobs)
    folder = output / "results"
    folder.mkdir(parents=True, exist_ok=True)
    missing = {job.name: job for job in jobs if not (folder / f"{job.name}.json").exists()}

    def run(job: Job) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "run", "--data", str(data), "--output", str(output)]
        command += ["--arm", job.arm, "--learning-rate", str(job.learning_rate), "--kl-coef", str(job.kl_coef)]
        command += ["--seed", str(job.seed), "--updates", str(job.updates), "--options", json.dumps(job.options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-3000:]}")
        last = json.loads((folder / f"{job.name}.json").read_text())["curve"][-1]
        print(
            f"{job.name}: win rate {last['win_rate']:.3f}, KL {last['kl']:.2f}, length {last['length']:.1f}", flush=True
        )

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, missing.values()))
    return [json.loads((folder / f"{job.name}.json").read_text()) for job in jobs]


def tuning_jobs(arm: str) -> list[Job]:
    return [
        Job(arm, learning_rate, kl_coef, seed, UPDATES, {"lam": lam})
        for learning_rate in LEARNING_RATES
        for kl_coef in (TRL_KL_COEFS if arm == "TRL" else KL_COEFS)
        for lam in LAMS
        for seed in TUNING_SEEDS
    ]


def choose(results: list[dict[str, Any]], human_length: float) -> tuple[float, float, float]:
    """Learning rate, KL coefficient and lambda of the setting that [`density_report.choose`] takes."""
    job = density_report.choose(results, human_length)
    return job.learning_rate, job.kl_coef, job.options["lam"]


def _chosen(arm: str, settings: dict[str, tuple[float, float, float]], seed: int, updates: int, **options: Any) -> Job:
    learning_rate, kl_coef, lam = settings[arm]
    return Job(arm, learning_rate, kl_coef, seed, updates, {"lam": lam, **options})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["prepare", "run", "all"])
    parser.add_argument("--data", type=Path, required=True, help="Folder with ParaDetox.")
    parser.add_argument("--output", type=Path, default=Path("runs/density"), help="Folder for models and results.")
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, each on one core.")
    parser.add_argument("--arm", choices=[*ARMS, *IMPLICIT_ARMS], default="token")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--kl-coef", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--options", type=json.loads, default={}, help="Other settings of the PPO run, as JSON.")
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "prepare":
        prepare(data, output)
    elif arguments.stage == "run":
        job = Job(
            arguments.arm,
            arguments.learning_rate,
            arguments.kl_coef,
            arguments.seed,
            arguments.updates,
            arguments.options,
        )
        result = run_job(job, data, output)
        (output / "results").mkdir(exist_ok=True)
        (output / "results" / f"{job.name}.json").write_text(json.dumps(result))
    else:
        if not (output / "prepared.json").exists():
            prepare(data, output)
        human_length = json.loads((output / "prepared.json").read_text())["lengths"]["chosen"]
        tuned = run_all([job for arm in ARMS for job in tuning_jobs(arm)], data, output, arguments.jobs)
        settings = {arm: choose([r for r in tuned if r["job"]["arm"] == arm], human_length) for arm in ARMS}
        jobs = [_chosen(arm, settings, seed, UPDATES) for seed in SEEDS for arm in ARMS]
        long = [_chosen("token", settings, seed, 3 * UPDATES) for seed in SEEDS[:2]]
        without = [
            _chosen("token", settings, seed, UPDATES, **options)
            for options in ABLATIONS.values()
            for seed in ABLATION_SEEDS
        ]
        groups = [run_all(group, data, output, arguments.jobs) for group in (jobs, long, without)]
        density_report.write_results(output, tuned, settings, *groups)


if __name__ == "__main__":
    main()
