"""Does GRPO gain by rewards of tokens? Advantages of completions and of tokens from one reward model.

    python benchmarks/grpo_density.py all --data <folder>    # prepare, tune every arm alike, run the seeds, report
    python benchmarks/grpo_density.py all --corpus demo      # the same on the corpus of examples/demo.py
    python benchmarks/grpo_density.py report                 # the table of what is there

On ParaDetox, start policy, reward models and judge are those of `density.py`; on the demo's corpus, those of the demo.
This prepares them where they are not there yet. Each run is a process of one thread and writes one JSON file; runs with
a file are not repeated.

Needs scikit-learn: `pip install -e ".[benchmarks]"`.
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
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from density import make_examiner, point_of, prepare
from density_report import differences, interval, machine, paired, win_rate_at_kl, win_rates_at
from density_settings import BATCH_SIZE, EVALUATE_EVERY, RESPONSE_LENGTH, UPDATES
from provenance import commit, stored_runs
from trl_tokenreward.utils.files import write_text


RESULTS = Path(__file__).resolve().parent / "results"
# Two batches of a generation, each read twice: four optimizer steps to an update, as the PPO runs of `density.py` have.
NUM_GENERATIONS, STEPS_PER_GENERATION, NUM_ITERATIONS = 8, 2, 2
STEPS_PER_UPDATE = STEPS_PER_GENERATION * NUM_ITERATIONS
# Learning rates and betas that every arm is tried with. On the demo's corpus, the sequence score at 3e-4 is
# over-optimised within five updates.
SETTINGS = {
    "paradetox": ((3e-4, 0.02), (3e-4, 0.06), (6e-4, 0.02)),
    "demo": ((5e-5, 0.05), (1e-4, 0.1)),
}
LENGTHS = {"paradetox": (UPDATES, EVALUATE_EVERY), "demo": (24, 3)}  # of a run, and between examinations, in updates
TUNING_SEED, SEEDS = 101, (1, 2, 3, 4, 5)
KL_LEVELS = (1, 2, 4)
# A setting is chosen by the win rate at this KL, which is compared.
COMPARED = 4

ARMS: dict[str, dict[str, Any]] = {
    # One reward for each completion: TRL's GRPOTrainer. It has no hold on the length.
    "scalar": {"reward_signal": "sequence_score"},
    "scalar, length held": {"reward_signal": "sequence_score", "hold_length": True},
    "process": {"advantage_estimator": "process"},
    "leave one out": {"advantage_estimator": "leave_one_out"},
}


BASELINE = "scalar, length held"


class Job(NamedTuple):
    """One GRPO run."""

    arm: str
    learning_rate: float
    beta: float
    seed: int

    @property
    def name(self) -> str:
        arm = self.arm.replace(", ", "-").replace(" ", "_")
        return f"{arm}-lr{self.learning_rate:g}-beta{self.beta:g}-seed{self.seed}"


def paradetox_task(data: Path, start: Any, tokenizer: Any) -> tuple[Any, Any, int]:
    """Prompts to train on, the examiner, and the most tokens of a completion."""
    from density_data import GoldJudge, paradetox

    parts = paradetox(data / "paradetox-8000.tsv")
    examiner = make_examiner(parts, GoldJudge(parts.gold), start, tokenizer)
    return parts.policy.select_columns("prompt"), examiner, RESPONSE_LENGTH


def demo_task(_: Path, start: Any, tokenizer: Any) -> tuple[Any, Any, int]:
    """The same of the demo's corpus, whose own rules are the judge."""
    from datasets import Dataset

    import demo

    train, evaluation = demo_rows(tokenizer)
    held_out = Dataset.from_dict({"input_ids": [demo.prompt_ids(row) for row in evaluation]})
    judge, _ = demo.make_judge(demo.Data(train, evaluation, None), start, tokenizer, evaluation, None)
    length = demo.response_length(train)
    examiner = demo.Examiner(start, judge, tokenizer, held_out, length, seed=0)
    texts = tokenizer.batch_decode([demo.prompt_ids(row) for row in train])
    return Dataset.from_dict({"prompt": texts}), examiner, length


def demo_rows(tokenizer: Any) -> tuple[Any, Any]:
    """The demo's prepared rows: to train on, and held out."""
    import demo

    sizes = demo.Sizes()
    data = demo.load_data(None, sizes, seed=0)
    parts = {"train": data.train, "evaluation": data.evaluation}
    return tuple(
        demo.prepare_dataset(rows, tokenizer, max_length=sizes.max_length, name=name)[0] for name, rows in parts.items()
    )


def prepare_demo(_: Path, output: Path) -> None:
    """The demo's start policy and reward model, and the latter's figures in `prepared.json`."""
    import torch
    from transformers import set_seed

    import demo

    torch.set_num_threads(1)
    set_seed(0)
    settings = demo.Run(output, 0, demo.Sizes())
    tokenizer = demo.train_tokenizer(demo.load_data(None, settings.sizes, seed=0).train, settings.sizes.vocabulary)
    train, evaluation = demo_rows(tokenizer)
    policy = demo.train_policy(tokenizer, train, settings)
    policy.save_pretrained(output / "start_policy")
    tokenizer.save_pretrained(output / "start_policy")
    _, metrics = demo.train_reward_model("reward_model", policy, tokenizer, train, evaluation, settings)
    (output / "prepared.json").write_text(json.dumps({"reward_model": metrics}))


TASKS = {"paradetox": paradetox_task, "demo": demo_task}
PREPARE = {"paradetox": prepare, "demo": prepare_demo}
FOLDERS = {"paradetox": Path("runs/density"), "demo": Path("runs/density-demo")}


def run(job: Job, corpus: str, data: Path, output: Path) -> dict[str, Any]:
    """Train one arm, and examine it on the test part's prompts every few updates."""
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer, TokenRewardModel

    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "start_policy")
    policy, start = (LlamaForCausalLM.from_pretrained(output / "start_policy", dtype=torch.float32) for _ in range(2))
    prompts, examiner, length = TASKS[corpus](data, start, tokenizer)
    updates, every = LENGTHS[corpus]

    class LearningCurve(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.points = [{"update": 0, **point_of(examiner.start, examiner.start)}]

        def on_step_end(self, args, state, control, model=None, **kwargs):
            update, within = divmod(state.global_step, STEPS_PER_UPDATE)
            if within == 0 and update % every == 0:
                self.points.append({"update": update, **point_of(examiner.examine(model), examiner.start)})

    curve = LearningCurve()
    trainer = FineGrainedGRPOTrainer(
        policy,
        TokenRewardModel.from_pretrained(output / "reward_model", dtype=torch.float32),
        FineGrainedGRPOConfig(
            str(output / "scratch" / job.name),
            seed=job.seed,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=BATCH_SIZE // STEPS_PER_GENERATION,
            steps_per_generation=STEPS_PER_GENERATION,
            num_iterations=NUM_ITERATIONS,
            num_generations=NUM_GENERATIONS,
            max_completion_length=length,
            max_steps=updates * STEPS_PER_UPDATE,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            beta=job.beta,
            logging_steps=STEPS_PER_UPDATE,
            **ARMS[job.arm],
        ),
        prompts,
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        callbacks=[curve],
    )
    begin = time.process_time()
    trainer.train()
    seconds = time.process_time() - begin
    curves = {"curve": curve.points, "log": trainer.state.log_history}
    return {"job": job._asdict(), "seconds": seconds, "commit": commit(), **curves}


def run_all(jobs: Iterable[Job], corpus: str, data: Path, output: Path, processes: int) -> list[dict[str, Any]]:
    """The results of the jobs, in their order; those that are not there yet are run first."""
    jobs, folder = list(jobs), output / "grpo"
    folder.mkdir(parents=True, exist_ok=True)

    def start(job: Job) -> None:
        if (folder / f"{job.name}.json").exists():
            return
        command = [sys.executable, __file__, "run", "--corpus", corpus, "--output", str(output)]
        command += [] if data is None else ["--data", str(data)]
        command += ["--arm", job.arm, "--learning-rate", str(job.learning_rate), "--beta", str(job.beta)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, "--seed", str(job.seed)], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-3000:]}")
        last = json.loads((folder / f"{job.name}.json").read_text())["curve"][-1]
        print(f"{job.name}: {last['win_rate']:.3f} at {last['kl']:.2f} nats, {last['length']:.1f} tokens", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(start, jobs))
    return [json.loads((folder / f"{job.name}.json").read_text()) for job in jobs]


def tuning_jobs(arm: str, corpus: str) -> list[Job]:
    return [Job(arm, rate, beta, TUNING_SEED) for rate, beta in SETTINGS[corpus]]


def choose(results: list[dict[str, Any]]) -> tuple[float, float]:
    """The setting with the highest win rate at the compared KL, or, where none comes so far, at its own end."""

    def merit(result: dict[str, Any]) -> tuple[bool, float]:
        at_kl = win_rate_at_kl(result["curve"], COMPARED)
        return at_kl is not None, result["curve"][-1]["win_rate"] if at_kl is None else at_kl

    job = max(results, key=merit)["job"]
    return job["learning_rate"], job["beta"]


def _setting(result: dict[str, Any]) -> tuple[str, float, float]:
    job = result["job"]
    return job["arm"], job["learning_rate"], job["beta"]


def write_report(corpus: str, output: Path) -> None:
    results = list(stored_runs(output / "grpo").values())
    tuned = [result for result in results if result["job"]["seed"] == TUNING_SEED]
    # Settings that were not chosen may have been run by hand.
    groups: dict[tuple[str, float, float], list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda r: (list(ARMS).index(r["job"]["arm"]), r["job"]["seed"])):
        if result["job"]["seed"] in SEEDS:
            groups.setdefault(_setting(result), []).append(result)
    chosen = {arm: choose([r for r in tuned if r["job"]["arm"] == arm]) for arm in ARMS}
    revisions = {(result["job"]["arm"], result.get("commit", "9a10a3b or before")) for result in results}
    lines = [
        f"# GRPO with rewards of tokens, on {'ParaDetox' if corpus == 'paradetox' else 'the corpus of the demo'}",
        "",
        f"`python benchmarks/grpo_density.py all {'--data <folder>' if corpus == 'paradetox' else '--corpus demo'}`, "
        f"{date.today()}, {machine()}. Runs by commit: "
        f"{'; '.join(f'{name} of {revision}' for (name, revision) in sorted(revisions))}.",
        "",
        "Policy, reward models and judge are those of "
        f"{'[the density dial](density.md)' if corpus == 'paradetox' else 'the demo, whose judge is exact'}. Each run: "
        f"{LENGTHS[corpus][0]} updates of {BATCH_SIZE} completions, {NUM_GENERATIONS} for each prompt, and "
        f"{STEPS_PER_UPDATE} optimizer steps to an update. All arms have one reward model. `scalar`: its sequence "
        "score, one reward for each completion (TRL's advantages); `scalar, length held`: with our hold on the mean "
        "length. `process` and `leave one out`: its token scores, with the two estimators of advantages and the hold "
        "on the length.",
        "",
        f"Each arm has the rate and beta with the highest win rate at {COMPARED} nats on the tuning seed "
        f"({TUNING_SEED}), of as many settings each. Win rates are against the start policy, on the test part's "
        "prompts, with 95 % intervals of the mean over the seeds (Student's t).",
        "",
        f"| arm | rate, beta | seeds | {' | '.join(f'at {level} nats' for level in KL_LEVELS)} | there, "
        "length-controlled | at the end | KL there | length there |",
        f"|{' --- |' * (7 + len(KL_LEVELS))}",
    ]
    for (arm, rate, beta), runs in groups.items():
        name = arm if (rate, beta) == chosen[arm] else f"{arm} (not chosen)"
        levels = win_rates_at(runs, KL_LEVELS)
        controlled = [[{**p, "win_rate": p["length_controlled"]} for p in r["curve"]] for r in runs]
        fair = [w for curve in controlled if (w := win_rate_at_kl(curve, COMPARED)) is not None]
        levels.append(interval(fair, 3) if fair else "–")
        ends = [interval([r["curve"][-1][n] for r in runs], digits) for n, digits in (("win_rate", 3), ("kl", 1))]
        length = interval([r["curve"][-1]["length"] for r in runs], 1)
        lines.append(
            f"| {name} | {rate:g}, {beta:g} | {len(runs)} | {' | '.join(levels)} | {' | '.join(ends)} | {length} |"
        )
    for baseline in (setting for setting in groups if setting[0] == BASELINE):
        lines += [
            "",
            f"Win rates less those of `{BASELINE}` at {baseline[1]:g}, {baseline[2]:g} with the same seed (how many "
            "seeds):",
            "",
            f"| arm | {' | '.join(f'at {level} nats' for level in KL_LEVELS)} | at the end |",
            f"|{' --- |' * (2 + len(KL_LEVELS))}",
        ]
        for setting, runs in groups.items():
            if setting[0] != BASELINE:
                cells = differences(paired(runs, groups[baseline]), KL_LEVELS)
                lines.append(f"| {setting[0]} | {' | '.join(cells)} |")
    lines += ["", "## Tuning", "", "| arm | rate, beta | at 4 nats | at the end | KL there |", "| --- " * 5 + "|"]
    for result in tuned:
        job, last = result["job"], result["curve"][-1]
        at_kl = win_rate_at_kl(result["curve"], COMPARED)
        lines.append(
            f"| {job['arm']} | {job['learning_rate']:g}, {job['beta']:g} | {'–' if at_kl is None else f'{at_kl:.3f}'} "
            f"| {last['win_rate']:.3f} | {last['kl']:.1f} |"
        )
    text = "\n".join(lines) + "\n"
    name = "grpo_density.md" if corpus == "paradetox" else f"grpo_density_{corpus}.md"
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["all", "run", "report"])
    parser.add_argument("--corpus", choices=list(TASKS), default="paradetox")
    parser.add_argument("--data", type=Path, help="Folder with ParaDetox.")
    parser.add_argument("--output", type=Path, help="Folder for models and results.")
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, each on one core.")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="How many seeds `all` runs.")
    parser.add_argument("--arm", choices=list(ARMS), default="process")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--beta", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    corpus, data = arguments.corpus, arguments.data
    output = arguments.output or FOLDERS[corpus]
    output.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "report":
        return write_report(corpus, output)
    if data is None and corpus == "paradetox":
        parser.error("name the folder with --data")
    if arguments.stage == "run":
        job = Job(arguments.arm, arguments.learning_rate, arguments.beta, arguments.seed)
        (output / "grpo").mkdir(exist_ok=True)
        write_text(output / "grpo" / f"{job.name}.json", json.dumps(run(job, corpus, data, output)))
        return None
    if not (output / "prepared.json").exists():
        PREPARE[corpus](data, output)
    tuned = run_all([job for arm in ARMS for job in tuning_jobs(arm, corpus)], corpus, data, output, arguments.jobs)
    chosen = {arm: choose([r for r in tuned if r["job"]["arm"] == arm]) for arm in ARMS}
    # Seed by seed, so that a run that is stopped has all arms with the seeds that it has.
    jobs = [Job(arm, *chosen[arm], seed) for seed in SEEDS[: arguments.seeds] for arm in ARMS]
    run_all(jobs, corpus, data, output, arguments.jobs)
    return write_report(corpus, output)


if __name__ == "__main__":
    main()
