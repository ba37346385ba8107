"""What dense rewards buy on a real model: PPO and GRPO of SmolLM2 on film reviews, one reward model, dense or not.

    python benchmarks/imdb.py prepare --data <folder> --model models/SmolLM2-135M-Instruct
    python benchmarks/imdb.py all --data <folder>    # runs what is missing, reports
    python benchmarks/imdb.py report                 # the table of what is there

The folder holds `imdb-counterfactual-train.tsv.gz` and `-dev.tsv.gz`. The first 1,000 pairs of the training file teach
the policy to write reviews and the reward models what to prefer; the judge learns from the others. A prompt is a
review's first tokens, and every completion has 48 tokens, so that its length plays no part.

Each stage of `prepare` and each run is a process of one thread and writes one result; what has a result is not
repeated, so that the benchmark can be stopped and started again.

Needs TRL 1.12, for its PPOTrainer, and: `pip install -e ".[benchmarks]" trl==1.12.0`.
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from imdb_data import SentimentJudge, reviews
from provenance import commit
from trl_tokenreward.utils.files import write_text


ROOT = Path(__file__).resolve().parents[1]
TRAIN, DEV = "imdb-counterfactual-train.tsv.gz", "imdb-counterfactual-dev.tsv.gz"
PAIRS = 1000  # for policy and reward models; the judge has the others
PROMPT_LENGTH, RESPONSE_LENGTH, PROMPTS = 8, 48, 192
BATCH_SIZE, STEPS_PER_UPDATE, NUM_GENERATIONS = 64, 2, 8
# A run ends at the KL up to which the arms are compared.
UPDATES, EVALUATE_EVERY, MAX_KL = 24, 3, 4.0
LEARNING_RATE, KL_COEF = 3e-5, 0.05
SEEDS = (1, 2, 3)

Arm = dict[str, Any]
# The scores' scale is the package's default for token scores; the sequence score has the same.
PPO: Arm = {"trainer": "ppo", "reward_scale": 0.2, "hold_length": False}
GRPO: Arm = {"trainer": "grpo", "hold_length": False}
ARMS: dict[str, Arm] = {
    "GRPO, scalar": {**GRPO, "reward_signal": "sequence_score"},
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


def prepared_pairs(data: Path, tokenizer: Any) -> tuple[Any, Any]:
    """The pairs that the reward models learn from, and those of the dev file, as far as policies write: without EOS, so
    that a sequence score is learned where it is read."""
    from trl_tokenreward.data.preprocessing import PREPARED_COLUMNS, prepare_dataset

    length = PROMPT_LENGTH + RESPONSE_LENGTH

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return {column: row[column][:-1][:length] for column in PREPARED_COLUMNS}

    parts = []
    for name, limit in ((TRAIN, PAIRS), (DEV, None)):
        rows, _ = prepare_dataset(reviews(data / name, words=70, limit=limit), tokenizer, name=name)
        parts.append(rows.map(cut).filter(lambda row: row["chosen_ids"] != row["rejected_ids"]))
    return parts[0], parts[1]


def start_policy(data: Path, model: str, output: Path) -> dict[str, Any]:
    """Supervised fine-tuning on the reviews of both sides, of half of the pairs: it is to write reviews, no more."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    pairs = reviews(data / TRAIN, words=70, limit=PAIRS // 2)
    texts = [text for side in ("chosen", "rejected") for text in pairs[side]]
    trainer = SFTTrainer(
        load(AutoModelForCausalLM, model),
        SFTConfig(
            **training_settings(output, "start_policy"),
            max_length=PROMPT_LENGTH + RESPONSE_LENGTH,
            per_device_train_batch_size=16,
            learning_rate=5e-5,
            lr_scheduler_type="cosine",
            num_train_epochs=1,
        ),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(output / "start_policy"))
    return {"loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]}


def reward_model(data: Path, model: str, output: Path) -> dict[str, Any]:
    """The token reward model, with nothing set but the rate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer, evaluate_token_rewards

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    train, dev = prepared_pairs(data, tokenizer)
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


def sequence_reward_model(data: Path, model: str, output: Path) -> dict[str, Any]:
    """TRL's reward model of the same pairs, for TRL's PPOTrainer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    train, dev = (part.select_columns(["chosen_ids", "rejected_ids"]) for part in prepared_pairs(data, tokenizer))
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


def judge(data: Path, model: str, output: Path) -> dict[str, Any]:
    """How well the judge tells the sides of the dev file's pairs apart."""
    import numpy as np

    dev, of_pairs = reviews(data / DEV, words=70), make_judge(data)
    above, below = (np.array(of_pairs(dev[side])) for side in ("chosen", "rejected"))
    return {
        "accuracy": float(np.mean([above > 0, below < 0])),
        "pairs": float(np.mean((above > below) + 0.5 * (above == below))),
    }


def make_judge(data: Path) -> SentimentJudge:
    """The judge, of whole reviews that no other model sees."""
    every = reviews(data / TRAIN, words=None)
    return SentimentJudge(every.select(range(PAIRS, len(every))))


STAGES: dict[str, Callable[[Path, str, Path], dict[str, Any]]] = {
    "reward_model": reward_model,
    "judge": judge,
    "start_policy": start_policy,
    "sequence_reward_model": sequence_reward_model,
}


# --- one process: a run --------------------------------------------------------------------------------------------


class Examiner:
    """Has policies continue the prompts of the dev file with the same random numbers, and measures what they write."""

    def __init__(self, data: Path, policy: Any, tokenizer: Any):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        from trl_tokenreward.evaluation.sampler import AnswerSampler

        self.sampler = AnswerSampler(
            tokenizer,
            prompts(data / DEV, tokenizer).select(range(PROMPTS)),
            response_length=RESPONSE_LENGTH,
            stop_token_id=None,
            batch_size=64,
        )
        self.judge = make_judge(data)
        self.lexicon = SentimentIntensityAnalyzer()
        self.policy = policy
        self.start = self._scores(policy)

    def _scores(self, policy: Any) -> dict[str, Any]:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers = self.sampler(policy)
            logps = self.sampler.log_probabilities(policy, answers)
        classified = self.judge([answer.text for answer in answers])
        lexicon = [self.lexicon.polarity_scores(answer.text)["compound"] for answer in answers]
        return {"answers": answers, "logps": logps, "classifier": classified, "lexicon": lexicon}

    def point(self, policy: Any) -> dict[str, Any]:
        """Win rates against the start policy by either judge, with the outcome of each prompt, and the KL in nats."""
        import numpy as np
        import torch

        from trl_tokenreward.utils.statistics import pairwise_outcomes

        now = self.start if policy is self.policy else self._scores(policy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reference = self.sampler.log_probabilities(self.policy, now["answers"])
        outcomes = {name: pairwise_outcomes(now[name], self.start[name]) for name in ("classifier", "lexicon")}
        distinct = [len(set(answer.ids)) / len(answer.ids) for answer in now["answers"]]
        return {
            "win_rate": float(np.mean(outcomes["classifier"])),
            "lexicon_win_rate": float(np.mean(outcomes["lexicon"])),
            "positive": float(np.mean(np.array(now["classifier"]) > 0)),
            "kl": float(np.mean(np.subtract(now["logps"], reference))),
            "distinct_tokens": float(np.mean(distinct)),
            "outcomes": list(map(float, outcomes["classifier"])),
            "texts": [p + a.text for p, a in zip(self.sampler.prompts, now["answers"], strict=True)][:12],
        }


def prompts(path: Path, tokenizer: Any) -> Any:
    """The first tokens of each review, once."""
    from datasets import Dataset

    pairs = reviews(path, words=70)
    texts = [text for pair in pairs for text in (pair["chosen"], pair["rejected"])]
    beginnings = [tuple(ids[:PROMPT_LENGTH]) for ids in tokenizer(texts)["input_ids"]]
    return Dataset.from_dict({"prompt": tokenizer.batch_decode([*dict.fromkeys(beginnings)])})


def run_job(job: Job, data: Path, output: Path) -> dict[str, Any]:
    """Train one arm, and examine it every few updates."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(output / "start_policy", trust_remote_code=False)
    policy, start = (load(AutoModelForCausalLM, output / "start_policy") for _ in range(2))
    examiner = Examiner(data, start, tokenizer)
    settings = dict(ARMS[job.arm])
    kind = settings.pop("trainer")
    settings |= {
        **training_settings(output, job.name, job.seed),
        "disable_tqdm": True,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
    }
    make = {"ppo": ppo_trainer, "grpo": grpo_trainer, "trl": trl_trainer}[kind]
    trainer, steps_per_update = make(settings, policy, prompts(data / TRAIN, tokenizer), tokenizer, output)

    class LearningCurve(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.points = [{"update": 0, **examiner.point(examiner.policy)}]

        def on_step_end(self, args, state, control, model=None, **kwargs):
            update, within = divmod(state.global_step, steps_per_update)
            if within == 0 and update % EVALUATE_EVERY == 0:
                self.points.append({"update": update, **examiner.point(getattr(model, "policy", model))})
                last = self.points[-1]
                print(f"{job.name}: update {update}: {last['win_rate']:.3f} at {last['kl']:.2f} nats", flush=True)
                control.should_training_stop = last["kl"] >= MAX_KL

    curve = LearningCurve()
    trainer.add_callback(curve)
    begin, processor = time.time(), time.process_time()
    trainer.train()
    return {
        "job": job._asdict(),
        "seconds": time.time() - begin,
        "processor_seconds": time.process_time() - processor,
        "commit": commit(),
        "curve": curve.points,
        "log": trainer.state.log_history,
    }


def grpo_trainer(settings: dict, policy: Any, rows: Any, tokenizer: Any, output: Path) -> tuple[Any, int]:
    from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer, TokenRewardModel

    config = FineGrainedGRPOConfig(
        **settings,
        per_device_train_batch_size=BATCH_SIZE // STEPS_PER_UPDATE,
        steps_per_generation=STEPS_PER_UPDATE,
        num_generations=NUM_GENERATIONS,
        max_completion_length=RESPONSE_LENGTH,
        max_steps=UPDATES * STEPS_PER_UPDATE,
        generation_kwargs={"min_new_tokens": RESPONSE_LENGTH},
        beta=KL_COEF,
    )
    rewards = [load(TokenRewardModel, output / "reward_model")] * len(settings.get("reward_settings", [{}]))
    trainer = FineGrainedGRPOTrainer(
        policy, rewards, config, rows, processing_class=tokenizer, reward_processing_classes=[tokenizer] * len(rewards)
    )
    return trainer, STEPS_PER_UPDATE


def ppo_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        "per_device_train_batch_size": BATCH_SIZE,
        "num_ppo_epochs": 1,
        "num_mini_batches": STEPS_PER_UPDATE,
        "total_episodes": UPDATES * BATCH_SIZE,
        "response_length": RESPONSE_LENGTH,
        "kl_coef": KL_COEF,
        "vf_coef": 0.5,
        "num_sample_generations": 0,
    }


def ppo_trainer(settings: dict, policy: Any, rows: Any, tokenizer: Any, output: Path) -> tuple[Any, int]:
    from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel

    trainer = FineGrainedPPOTrainer(
        args=FineGrainedPPOConfig(**ppo_settings(settings)),
        processing_class=tokenizer,
        model=policy,
        reward_model=load(TokenRewardModel, output / "reward_model"),
        train_dataset=rows,
    )
    return trainer, trainer.schedule.steps_per_update


def trl_trainer(settings: dict, policy: Any, rows: Any, tokenizer: Any, output: Path) -> tuple[Any, int]:
    """TRL's PPOTrainer, which counts updates as steps, with TRL's reward model and a copy of it as value model."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = rows.map(lambda row: tokenizer(row["prompt"]), remove_columns=["prompt"]).select_columns("input_ids")
    scored = [
        load(AutoModelForSequenceClassification, output / "sequence_reward_model", num_labels=1) for _ in range(2)
    ]
    # Its penalty is on rewards that have no scale.
    trainer = PPOTrainer(
        args=PPOConfig(**{**ppo_settings(settings), "kl_coef": KL_COEF / PPO["reward_scale"], "logging_steps": 1}),
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
    command = [sys.executable, str(Path(__file__).resolve()), stage, *arguments]
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


def main() -> None:
    from imdb_report import write_report

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["prepare", *STAGES, "run", "all", "report"])
    parser.add_argument("--data", type=Path, help="Folder with the two files.")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="Path or Hub name.")
    parser.add_argument("--output", type=Path, default=Path("runs/imdb"), help="Folder for models and results.")
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, each on one core.")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="The arms that `all` runs.")
    parser.add_argument("--arm", choices=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "report":
        return write_report(output)
    if data is None:
        parser.error("name the folder with --data")
    if arguments.stage in STAGES or arguments.stage == "run":
        if arguments.stage == "run":
            job = Job(arguments.arm, arguments.seed)
            path, result = output / "results" / f"{job.name}.json", run_job(job, data, output)
        else:
            import torch

            torch.set_num_threads(1)
            torch.manual_seed(0)
            path = output / f"{arguments.stage}.json"
            begin = time.time()
            result = STAGES[arguments.stage](data, arguments.model, output)
            result |= {"seconds": time.time() - begin, "commit": commit()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result))
        return None
    prepare(data, arguments.model, output, arguments.jobs)
    if arguments.stage == "all":
        # Seed by seed, so that a run that is stopped has all arms with the seeds that it has.
        jobs = [Job(arm, seed) for seed in SEEDS for arm in arguments.arms]
        run_all(jobs, data, output, arguments.jobs)
        write_report(output)
    return None


if __name__ == "__main__":
    main()
