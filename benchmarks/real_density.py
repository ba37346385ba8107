"""What dense rewards buy on a real model: PPO and GRPO of a pretrained model, one reward model, dense or not.

`imdb.py` and `detox.py` each name a corpus, and are the commands. Each stage of `prepare` and each run is a process of
one thread and writes one result; what has a result is not repeated, so that a benchmark can be stopped and started
again.
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from provenance import commit
from trl_tokenreward.utils.files import write_text


ROOT = Path(__file__).resolve().parents[1]
STEPS_PER_UPDATE, NUM_GENERATIONS = 2, 8
# A run ends at the KL up to which the arms are compared.
MAX_KL = 4.0
LEARNING_RATE, KL_COEF = 3e-5, 0.05
SEEDS = (1, 2, 3)

Arm = dict[str, Any]
# The scores' scale is the package's default for token scores; the sequence score has the same.
PPO: Arm = {"trainer": "ppo", "reward_scale": 0.2}
GRPO: Arm = {"trainer": "grpo"}
ARMS: dict[str, Arm] = {
    "GRPO, scalar": {**GRPO, "reward_signal": "sequence_score"},
    # TRL's own, which has no hold on the length; the same where a corpus has no stop token.
    "GRPO, scalar, length free": {**GRPO, "reward_signal": "sequence_score", "hold_length": False},
    "GRPO, leave one out": {**GRPO, "advantage_estimator": "leave_one_out"},
    # The list has the reward model twice.
    "GRPO, token + sequence": {
        **GRPO,
        "advantage_estimator": "leave_one_out",
        "reward_settings": [{"reward_signal": "token_scores"}, {"reward_signal": "sequence_score"}],
    },
    "PPO, terminal": {**PPO, "reward_signal": "sequence_score"},
    "PPO, token": {**PPO, "reward_signal": "token_scores"},
    # The lambda that was best for token scores, and not for the terminal one, in `density.py`.
    "PPO, token, lambda .7": {**PPO, "reward_signal": "token_scores", "lam": 0.7},
    # At one rate, token scores come to as much KL in two thirds of the updates that the terminal one takes.
    "PPO, token, rate 2e-5": {**PPO, "reward_signal": "token_scores", "learning_rate": 2e-5},
    "PPO, token, lambda 1": {**PPO, "reward_signal": "token_scores", "lam": 1.0},
    "PPO, token + sequence": {**PPO, "reward_signal": "token_scores", "sequence_score_coef": 0.5},
    "PPO, potential": {**PPO, "reward_density": "potential"},
    "TRL's PPO": {"trainer": "trl"},
}


class Job(NamedTuple):
    """One run of PPO or GRPO."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        arm = self.arm.lower().replace(", ", "-").replace(" + ", "+").replace("'", "").replace(" ", "_")
        return f"{arm}-seed{self.seed}"


Judge = Callable[[list[str], list[str]], list[float]]


class Corpus(ABC):
    """Who is to learn what from which data, and who judges it."""

    # The folder in `runs`, the table in `results`, and the script.
    name: str
    # What the policy writes, for the table.
    task: str
    response_length: int
    # Without a stop token, every completion has `response_length` tokens.
    stop_token: str | None
    # Completions of an update.
    batch_size: int = 64
    # Of a run, and between examinations.
    updates: int
    evaluate_every: int
    # Tokens of a text in supervised fine-tuning.
    max_length: int

    @abstractmethod
    def policy_texts(self, data: Path) -> list[str]:
        """What the start policy learns to write."""

    @abstractmethod
    def pairs(self, data: Path, tokenizer: Any) -> tuple[Any, Any]:
        """Prepared pairs that the reward models learn from, and held-out ones."""

    @abstractmethod
    def prompts(self, data: Path, tokenizer: Any) -> tuple[Any, Any]:
        """Prompts to train on, and held-out ones."""

    @abstractmethod
    def judges(self, data: Path) -> dict[str, Judge]:
        """Scores of answers to prompts, by the name of who gives them. The first judge decides. None has seen a text
        that a model learns from."""

    @abstractmethod
    def judge_figures(self, data: Path, judge: Judge) -> dict[str, float]:
        """How well the first judge tells the sides of held-out pairs apart."""


def lexicon() -> Judge:
    """VADER's sentiment of an answer. It has learned from nothing."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def judge(prompts: list[str], answers: list[str]) -> list[float]:
        return [analyzer.polarity_scores(answer)["compound"] for answer in answers]

    return judge


# --- one process: what all arms share ------------------------------------------------------------------------------


def training_settings(output: Path, name: str, seed: int = 0) -> dict[str, Any]:
    return {
        "output_dir": str(output / "scratch" / name),
        "seed": seed,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 4,
    }


def load(kind: Any, path: str | Path, **kwargs: Any) -> Any:
    """A model in float32. On a CPU, a step with "eager" attention takes a quarter less time than with "sdpa"."""
    import torch

    return kind.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, **kwargs
    )


def start_policy(corpus: Corpus, data: Path, model: str, output: Path) -> dict[str, Any]:
    """Supervised fine-tuning: it is to write such texts, no more."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    trainer = SFTTrainer(
        load(AutoModelForCausalLM, model),
        SFTConfig(
            **training_settings(output, "start_policy"),
            max_length=corpus.max_length,
            per_device_train_batch_size=16,
            learning_rate=5e-5,
            lr_scheduler_type="cosine",
            num_train_epochs=1,
        ),
        train_dataset=Dataset.from_dict({"text": corpus.policy_texts(data)}),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(output / "start_policy"))
    return {"loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]}


def reward_model(corpus: Corpus, data: Path, model: str, output: Path) -> dict[str, Any]:
    """The token reward model, with nothing set but the rate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer, evaluate_token_rewards

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    train, dev = corpus.pairs(data, tokenizer)
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_backbone(load(AutoModelForCausalLM, model), copy=False),
        TokenRewardConfig(
            **training_settings(output, "reward_model"),
            num_train_epochs=1,
            learning_rate=1e-4,
            per_device_train_batch_size=8,
        ),
        train_dataset=train,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(output / "reward_model"))
    report = evaluate_token_rewards(trainer.model, tokenizer, dev)
    report.save(output / "token_rewards.json")
    names = ("token_auroc", "token_accuracy", "sequence_accuracy")
    return {"pairs": len(train), **{name: getattr(report, name).value for name in names}}


def sequence_reward_model(corpus: Corpus, data: Path, model: str, output: Path) -> dict[str, Any]:
    """TRL's reward model of the same pairs, for TRL's PPOTrainer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    train, dev = (part.select_columns(["chosen_ids", "rejected_ids"]) for part in corpus.pairs(data, tokenizer))
    trainer = RewardTrainer(
        load(AutoModelForSequenceClassification, model, num_labels=1),
        RewardConfig(
            **training_settings(output, "sequence_reward_model"),
            num_train_epochs=1,
            learning_rate=3e-5,
            per_device_train_batch_size=8,
        ),
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(output / "sequence_reward_model"))
    return {"sequence_accuracy": trainer.evaluate()["eval_accuracy"]}


def judge(corpus: Corpus, data: Path, model: str, output: Path) -> dict[str, Any]:
    return corpus.judge_figures(data, next(iter(corpus.judges(data).values())))


STAGES: dict[str, Callable[[Corpus, Path, str, Path], dict[str, Any]]] = {
    "reward_model": reward_model,
    "judge": judge,
    "start_policy": start_policy,
    "sequence_reward_model": sequence_reward_model,
}


# --- one process: a run --------------------------------------------------------------------------------------------


class Examiner:
    """Has policies answer the held-out prompts with the same random numbers, and measures what they write."""

    def __init__(self, corpus: Corpus, data: Path, policy: Any, tokenizer: Any):
        from trl_tokenreward.evaluation.sampler import AnswerSampler

        self.sampler = AnswerSampler(
            tokenizer,
            corpus.prompts(data, tokenizer)[1],
            response_length=corpus.response_length,
            stop_token_id=corpus.stop_token,
            batch_size=64,
        )
        self.judges = corpus.judges(data)
        self.policy = policy
        self.start = self._scores(policy)

    def _scores(self, policy: Any) -> dict[str, Any]:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers = self.sampler(policy)
            logps = self.sampler.log_probabilities(policy, answers)
        texts = [answer.text for answer in answers]
        return {
            "answers": answers,
            "logps": logps,
            **{name: judge(self.sampler.prompts, texts) for name, judge in self.judges.items()},
        }

    def point(self, policy: Any) -> dict[str, Any]:
        """Win rates against the start policy by either judge, with the outcome of each prompt, the KL in nats, and the
        length in tokens."""
        import numpy as np
        import torch

        from trl_tokenreward.utils.statistics import pairwise_outcomes

        now = self.start if policy is self.policy else self._scores(policy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reference = self.sampler.log_probabilities(self.policy, now["answers"])
        first, second = (pairwise_outcomes(now[name], self.start[name]) for name in self.judges)
        distinct = [len(set(answer.ids)) / max(len(answer.ids), 1) for answer in now["answers"]]
        return {
            "win_rate": float(np.mean(first)),
            "lexicon_win_rate": float(np.mean(second)),
            "kl": float(np.mean(np.subtract(now["logps"], reference))),
            "length": float(np.mean([len(answer.ids) for answer in now["answers"]])),
            "distinct_tokens": float(np.mean(distinct)),
            "outcomes": list(map(float, first)),
            "texts": [p + a.text for p, a in zip(self.sampler.prompts, now["answers"], strict=True)][:12],
        }


class FarEnough(Exception):
    """Ends a run of TRL's PPOTrainer, which does not stop for a callback."""


def run_job(corpus: Corpus, job: Job, data: Path, output: Path) -> dict[str, Any]:
    """Train one arm, and examine it every few updates."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(output / "start_policy", trust_remote_code=False)
    policy, start = (load(AutoModelForCausalLM, output / "start_policy") for _ in range(2))
    examiner = Examiner(corpus, data, start, tokenizer)
    settings = {
        **training_settings(output, job.name, job.seed),
        "disable_tqdm": True,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        **ARMS[job.arm],
    }
    kind = settings.pop("trainer")
    if kind != "trl":
        settings.setdefault("hold_length", corpus.stop_token is not None)
    make = {"ppo": ppo_trainer, "grpo": grpo_trainer, "trl": trl_trainer}[kind]
    trainer, steps_per_update = make(corpus, settings, policy, corpus.prompts(data, tokenizer)[0], tokenizer, output)

    class LearningCurve(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.points = [{"update": 0, **examiner.point(examiner.policy)}]

        def on_step_end(self, args, state, control, model=None, **kwargs):
            update, within = divmod(state.global_step, steps_per_update)
            if within == 0 and update % corpus.evaluate_every == 0:
                self.points.append({"update": update, **examiner.point(getattr(model, "policy", model))})
                last = self.points[-1]
                print(f"{job.name}: update {update}: {last['win_rate']:.3f} at {last['kl']:.2f} nats", flush=True)
                control.should_training_stop = last["kl"] >= MAX_KL
                if control.should_training_stop and kind == "trl":
                    raise FarEnough

    curve = LearningCurve()
    trainer.add_callback(curve)
    begin, processor = time.time(), time.process_time()
    with suppress(FarEnough):
        trainer.train()
    return {
        "job": job._asdict(),
        "seconds": time.time() - begin,
        "processor_seconds": time.process_time() - processor,
        "commit": commit(),
        "curve": curve.points,
        "log": trainer.state.log_history,
    }


def grpo_trainer(
    corpus: Corpus, settings: dict, policy: Any, rows: Any, tokenizer: Any, output: Path
) -> tuple[Any, int]:
    from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer, TokenRewardModel

    config = FineGrainedGRPOConfig(
        **settings,
        per_device_train_batch_size=corpus.batch_size // STEPS_PER_UPDATE,
        steps_per_generation=STEPS_PER_UPDATE,
        num_generations=NUM_GENERATIONS,
        max_completion_length=corpus.response_length,
        max_steps=corpus.updates * STEPS_PER_UPDATE,
        generation_kwargs=None if corpus.stop_token else {"min_new_tokens": corpus.response_length},
        beta=KL_COEF,
    )
    rewards = [load(TokenRewardModel, output / "reward_model")] * len(settings.get("reward_settings", [{}]))
    trainer = FineGrainedGRPOTrainer(
        policy, rewards, config, rows, processing_class=tokenizer, reward_processing_classes=[tokenizer] * len(rewards)
    )
    return trainer, STEPS_PER_UPDATE


def ppo_settings(corpus: Corpus, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        "per_device_train_batch_size": corpus.batch_size,
        "num_ppo_epochs": 1,
        "num_mini_batches": STEPS_PER_UPDATE,
        "total_episodes": corpus.updates * corpus.batch_size,
        "response_length": corpus.response_length,
        "stop_token": corpus.stop_token,
        "kl_coef": KL_COEF,
        "vf_coef": 0.5,
        "num_sample_generations": 0,
    }


def ppo_trainer(
    corpus: Corpus, settings: dict, policy: Any, rows: Any, tokenizer: Any, output: Path
) -> tuple[Any, int]:
    from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel

    trainer = FineGrainedPPOTrainer(
        args=FineGrainedPPOConfig(**ppo_settings(corpus, settings)),
        processing_class=tokenizer,
        model=policy,
        reward_model=load(TokenRewardModel, output / "reward_model"),
        train_dataset=rows,
    )
    return trainer, trainer.schedule.steps_per_update


def trl_trainer(
    corpus: Corpus, settings: dict, policy: Any, rows: Any, tokenizer: Any, output: Path
) -> tuple[Any, int]:
    """TRL's PPOTrainer, which counts updates as steps, with TRL's reward model and a copy of it as value model."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = rows.map(lambda row: tokenizer(row["prompt"]), remove_columns=["prompt"]).select_columns("input_ids")
    scored = [
        load(AutoModelForSequenceClassification, output / "sequence_reward_model", num_labels=1) for _ in range(2)
    ]
    # Its penalty is on rewards that have no scale.
    trainer = PPOTrainer(
        args=PPOConfig(
            **{**ppo_settings(corpus, settings), "kl_coef": KL_COEF / PPO["reward_scale"], "logging_steps": 1}
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=load(AutoModelForCausalLM, output / "start_policy"),
        reward_model=scored[0],
        value_model=scored[1],
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
    )
    return trainer, 1


# --- many processes ------------------------------------------------------------------------------------------------


def start(stage: str, arguments: list[str], result: Path) -> None:
    """Run a stage in a process of its own, unless its result is there."""
    if result.exists():
        return
    command = [sys.executable, sys.argv[0], stage, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result.parent.mkdir(parents=True, exist_ok=True)
    with result.with_suffix(".log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed; see {result.with_suffix('.log')}.")
    print(f"{result.stem} is done.", flush=True)


def run_all(jobs: Iterable[Job], data: Path, output: Path, processes: int) -> list[dict[str, Any]]:
    """The results of the jobs, in their order; those that are not there yet are run first."""
    jobs, folder = list(jobs), output / "results"

    def run(job: Job) -> None:
        arguments = ["--data", str(data), "--output", str(output), "--arm", job.arm, "--seed", str(job.seed)]
        start("run", arguments, folder / f"{job.name}.json")

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, jobs))
    return [json.loads((folder / f"{job.name}.json").read_text()) for job in jobs]


def prepare(data: Path, model: str, output: Path, processes: int) -> None:
    def run(stage: str) -> None:
        arguments = ["--data", str(data), "--model", model, "--output", str(output)]
        start(stage, arguments, output / f"{stage}.json")

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, STAGES))


def main(corpus: Corpus, doc: str) -> None:
    """The command line of a corpus's script, which has the docstring."""
    from real_density_report import write_report

    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("stage", choices=["prepare", *STAGES, "run", "all", "report"])
    parser.add_argument("--data", type=Path, help="Folder with the data.")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="Path or Hub name.")
    parser.add_argument(
        "--output", type=Path, default=Path("runs") / corpus.name, help="Folder for models and results."
    )
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, each on one core.")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="The arms that `all` runs.")
    parser.add_argument("--arm", choices=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "report":
        return write_report(corpus, output)
    if data is None:
        parser.error("name the folder with --data")
    if arguments.stage in STAGES or arguments.stage == "run":
        if arguments.stage == "run":
            job = Job(arguments.arm, arguments.seed)
            path, result = output / "results" / f"{job.name}.json", run_job(corpus, job, data, output)
        else:
            import torch

            torch.set_num_threads(1)
            torch.manual_seed(0)
            path = output / f"{arguments.stage}.json"
            begin = time.time()
            result = STAGES[arguments.stage](corpus, data, arguments.model, output)
            result |= {"seconds": time.time() - begin, "commit": commit()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result))
        return None
    prepare(data, arguments.model, output, arguments.jobs)
    if arguments.stage == "all":
        # Seed by seed, so that a run that is stopped has all arms with the seeds that it has.
        jobs = [Job(arm, seed) for seed in SEEDS for arm in arguments.arms]
        run_all(jobs, data, output, arguments.jobs)
        write_report(corpus, output)
    return None
