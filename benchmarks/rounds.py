"""Rounds of editing on the demo's corpus: do three rounds of edits beat one round with as many?

    python benchmarks/rounds.py run --output runs/rounds --seeds 101 102 103
    python benchmarks/rounds.py report --output runs/rounds

A seed has rows, a start policy and a first reward model of its own, from which its arms go on with `run_rounds`. The
corpus's exact judge is the editor: it returns the nearest answer without a fault. All arms have as many optimizer steps
of the reward model and as many PPO updates, and the editor reads as many answers:

- "three rounds": the editor reads a third of the answers in each round, of the policy as it is then;
- "one round": it reads all of them at the beginning, of the start policy;
- "no edits": PPO with the first reward model, as long.

Policies are examined at checkpoints within the rounds, so that scores can be compared at equal KL. What was run is in
the output folder and is not run again. The figures go to `benchmarks/results/rounds.md`.
"""

import argparse
import json
import logging
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks"), str(ROOT)]

SIZES = {"rows": 1500, "evaluation_rows": 192, "hidden_size": 128, "vocabulary": 1024, "sft_epochs": 6}
FIRST_PAIRS, FIRST_STEPS = 40, 20  # of the first reward model, which is to be a weak one
ROUNDS, ANSWERS, REWARD_STEPS, UPDATES = 3, 150, 40, 12  # of each of the three rounds
BATCH_SIZE, EXAMINE_EVERY = 48, 4  # completions of an update, and updates between two examinations
KL_LEVELS = (1.0, 2.0, 3.0, 4.0)
ARMS = ("three rounds", "one round", "no edits")
METRICS = {"score": 2, "win_rate": 3, "kl": 2, "length": 1}
TITLES = {"score": "judge's score", "win_rate": "win rate", "kl": "KL (nats)", "length": "length (tokens)"}

# --- one seed -------------------------------------------------------------------------------------------------------


def run_seed(seed: int, output: Path) -> dict[str, Any]:
    """The results of a seed's arms: each its examinations and the figures of its rounds."""
    import torch
    from transformers import set_seed

    import demo

    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder = output / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    run = demo.Run(folder, seed, demo.Sizes(**SIZES))
    set_seed(seed)
    data = demo.load_data(None, run.sizes, seed)
    tokenizer, examiner = prepare(data, run)
    results = {}
    for arm in ARMS:
        path = folder / f"{arm.replace(' ', '_')}.json"
        if not path.exists():
            result = run_arm(arm, data, tokenizer, examiner, run)
            path.write_text(json.dumps(result, indent=1), encoding="utf-8")
            end = result["curve"][-1]
            print(f"seed {seed}, {arm}: " + ", ".join(f"{name} {end[name]:.3f}" for name in METRICS), flush=True)
        results[arm] = json.loads(path.read_text())
    return results


def prepare(data: Any, run: Any) -> tuple[Any, Any]:
    """Makes the seed's start policy and first reward model, each in a folder, and returns tokenizer and examiner."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import demo
    from trl_tokenreward.data.preprocessing import prepare_dataset

    start, first = run.output / "start_policy", run.output / "first_reward_model"
    done = {path: path / "prepared" for path in (start, first)}
    if done[start].exists():
        tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    else:
        tokenizer = demo.train_tokenizer(data.train, run.sizes.vocabulary)
    train, evaluation = (
        prepare_dataset(part, tokenizer, max_length=run.sizes.max_length, name="rows")[0]
        for part in (data.train, data.evaluation)
    )
    if not done[start].exists():
        demo.train_policy(tokenizer, train, run)
        tokenizer.save_pretrained(start)
        done[start].touch()
    policy = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    if not done[first].exists():
        pairs = train.select(range(FIRST_PAIRS))
        demo.train_reward_model(first.name, policy, tokenizer, pairs, evaluation, run, max_steps=FIRST_STEPS)
        tokenizer.save_pretrained(first)
        done[first].touch()
    judge, _ = demo.make_judge(data, policy, tokenizer, evaluation, run)
    prompts = Dataset.from_dict({"input_ids": [demo.prompt_ids(row) for row in evaluation]})
    length = demo.response_length(train)
    return tokenizer, demo.Examiner(policy, judge, tokenizer, prompts, length, run.seed)


def run_arm(arm: str, data: Any, tokenizer: Any, examiner: Any, run: Any) -> dict[str, Any]:
    """An arm's learning curve, and the figures of its rounds."""
    from demo_corpus import correct
    from trl_tokenreward import RoundConfig, run_rounds

    folder = run.output / arm.replace(" ", "_")
    rounds = ROUNDS if arm == "three rounds" else 1
    share = ROUNDS // rounds
    settings = {"seed": run.seed, "use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    ppo = ppo_config(settings, share * UPDATES, examiner.sampler.response_length)
    if arm == "no edits":
        policies = [ppo_without_edits(ppo, folder, data, run)]
        figures: list[dict[str, Any]] = []
    else:
        done = run_rounds(
            run.output / "start_policy",
            run.output / "first_reward_model",
            data.train,
            lambda prompts, answers: [correct(*pair) for pair in zip(prompts, answers, strict=True)],
            folder,
            config=RoundConfig(reward_config(settings, share * REWARD_STEPS), ppo, num_prompts=share * ANSWERS),
            rounds=rounds,
            pairs=data.train.select(range(FIRST_PAIRS)),
            eval_pairs=data.evaluation,
        )
        policies, figures = [one.policy for one in done], [one.figures for one in done]
    return {"curve": learning_curve(policies, examiner), "rounds": figures}


def reward_config(settings: dict[str, Any], steps: int) -> Any:
    from trl_tokenreward import TokenRewardConfig

    return TokenRewardConfig(
        **settings,
        max_steps=steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        save_strategy="no",
    )


def ppo_config(settings: dict[str, Any], updates: int, response_length: int) -> Any:
    """The demo's settings, with the package's own KL coefficient, .05. There, the demo found, policies leave the start
    further than its reward model can be trusted, which is what rounds are for."""
    from trl_tokenreward import FineGrainedPPOConfig

    return FineGrainedPPOConfig(
        **settings,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=1,
        num_ppo_epochs=2,
        num_mini_batches=2,
        total_episodes=updates * BATCH_SIZE,
        response_length=response_length,
        stop_token="eos",
        temperature=1.0,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        kl_coef=0.05,
        vf_coef=0.5,
        logging_steps=16,
        num_sample_generations=0,
        save_strategy="steps",
        save_steps=4 * EXAMINE_EVERY,  # optimizer steps: 2 epochs of 2 mini-batches
    )


def ppo_without_edits(ppo: Any, folder: Path, data: Any, run: Any) -> Path:
    """PPO with the first reward model, as rounds do it."""
    from trl_tokenreward.rounds.folder import RoundFolder
    from trl_tokenreward.rounds.settings import for_round
    from trl_tokenreward.rounds.stages import train_policy

    place = RoundFolder(folder, {})
    place.reward_model = run.output / "first_reward_model"
    args = for_round(ppo, 1, str(place.policy))
    start = run.output / "start_policy"
    place.stage("policy", lambda: train_policy(place, start, None, data.train, data.evaluation, args, None))
    return place.policy


def learning_curve(policies: list[Path], examiner: Any) -> list[dict[str, float]]:
    """Examinations of the start policy and of every checkpoint, with the number of updates before it."""
    import torch
    from transformers import AutoModelForCausalLM

    curve, before = [examination(examiner.start, examiner, 0)], 0
    for policy in policies:
        checkpoints = sorted(policy.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        for checkpoint in checkpoints:
            update = before + int(checkpoint.name.split("-")[1]) // 4
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
            curve.append(examination(examiner.examine(model), examiner, update))
        before = curve[-1]["update"]
    return curve


def examination(exam: Any, examiner: Any, update: int) -> dict[str, float]:
    from trl_tokenreward.utils.statistics import win_rate

    means = {"score": exam.scores, "kl": exam.kl, "length": exam.lengths}
    won = win_rate(exam.scores, examiner.start.scores)
    return {"update": update, "win_rate": won, **{name: float(np.mean(values)) for name, values in means.items()}}


# --- the report -----------------------------------------------------------------------------------------------------


def score_at(curve: list[dict[str, float]], kl: float) -> float | None:
    """The judge's score where the curve first reaches a KL, between two examinations on a line. `None` if it never
    does."""
    for one, other in zip(curve, curve[1:], strict=False):
        if one["kl"] <= kl <= other["kl"]:
            share = (kl - one["kl"]) / (other["kl"] - one["kl"]) if other["kl"] > one["kl"] else 0.0
            return one["score"] + share * (other["score"] - one["score"])
    return None


def report(seeds: list[int], results: list[dict[str, Any]], command: str) -> str:
    """The figures as Markdown."""
    from density_report import commit, interval, machine

    n, updates = ROUNDS * ANSWERS, ROUNDS * UPDATES
    lines = [
        "# Rounds of editing",
        "",
        f"`{command}`, {date.today()}, commit {commit()}, {machine()}.",
        "",
        f"The demo's corpus, a policy and a reward model of {SIZES['hidden_size']} dimensions and 2 layers, trained on "
        f"the spot. The first reward model learns from {FIRST_PAIRS} pairs of the corpus. The corpus's exact judge is "
        f"the editor. It reads {n} answers: {ANSWERS} in each of {ROUNDS} rounds, or all in one round; answers without "
        f"a fault stay as they are. Every arm takes {updates} updates of {BATCH_SIZE} completions; those with edits "
        f"take {ROUNDS * REWARD_STEPS} more steps of the reward model, on the edits and the first pairs. The learning "
        "rates are the demo's and the KL coefficient is the default, .05, tuned for none of the arms. The reference of "
        "the KL is the start policy.",
        "",
        f"Mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, each with rows, models and completions of its "
        "own, with a 95 % interval of the "
        f"mean (Student's t), on {SIZES['evaluation_rows']} held-out prompts. The win rate is against the start "
        "policy.",
        "",
        "## At the end",
        "",
        f"| | start policy | {' | '.join(ARMS)} |",
        f"| --- | --- |{' --- |' * len(ARMS)}",
    ]
    for name, digits in METRICS.items():
        start = interval([r[ARMS[0]]["curve"][0][name] for r in results], digits) if name != "win_rate" else ""
        cells = [interval([r[arm]["curve"][-1][name] for r in results], digits) for arm in ARMS]
        lines.append(f"| {TITLES[name]} | {start} | {' | '.join(cells)} |")
    for name, what in (("win_rate", "Win rate"), ("score", "Judge's score"), ("kl", "KL")):
        values = [r["three rounds"]["curve"][-1][name] - r["one round"]["curve"][-1][name] for r in results]
        lines += ["", f"{what}, three rounds less one round, seed by seed: {interval(values, 3, sign='+')}."]
    scores = [r["three rounds"]["curve"][-1]["score"] - r["one round"]["curve"][-1]["score"] for r in results]
    lines += ["", verdict(scores)]
    lines += [
        "",
        "## At equal KL",
        "",
        "The judge's score where the learning curve first reaches a KL, between two examinations on a line; in "
        "brackets, how many seeds reach it. The difference is over the seeds where both arms do.",
        "",
        f"| KL (nats) | {' | '.join(ARMS)} | three rounds less one round |",
        f"| --- |{' --- |' * (len(ARMS) + 1)}",
    ]
    for kl in KL_LEVELS:
        at = {arm: [score_at(r[arm]["curve"], kl) for r in results] for arm in ARMS}
        cells = []
        for arm in ARMS:
            reached = [score for score in at[arm] if score is not None]
            cells.append(f"{interval(reached, 2)} ({len(reached)})" if reached else "– (0)")
        both = [a - b for a, b in zip(at[ARMS[0]], at[ARMS[1]], strict=True) if a is not None and b is not None]
        cells.append(interval(both, 2, sign="+") if both else "–")
        lines.append(f"| {kl:g} | {' | '.join(cells)} |")
    lines += ["", "## The rounds", "", *_rounds_table(results, interval), "", *_seeds_table(seeds, results)]
    return "\n".join([*lines, ""])


def verdict(differences: list[float]) -> str:
    """What the seeds say about the judge's score of three rounds less that of one."""
    from density_report import STUDENT

    if len(differences) < 2:
        return "One seed does not tell which arm is better."
    half = STUDENT[len(differences) - 2] * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    if abs(np.mean(differences)) <= half:
        return "Three rounds do not beat one round with as many edits here: the interval of the difference includes 0."
    better, worse = ("Three rounds", "one round") if np.mean(differences) > 0 else ("One round", "three rounds")
    return f"{better} beat{'s' if better == 'One round' else ''} {worse} with as many edits here."


def _rounds_table(results: list[dict[str, Any]], interval: Any) -> list[str]:
    lines = [
        "The reward model's figures are on held-out pairs of the corpus, before and after it trains on the edits.",
        "",
        "| round | answers read | unfinished | edited | unchanged | token AUROC before | after | accuracy before "
        "| after |",
        f"|{' --- |' * 9}",
    ]
    for arm in ARMS[:2]:
        for place in range(len(results[0][arm]["rounds"])):
            rounds = [r[arm]["rounds"][place] for r in results]
            counts = [
                [r["samples"]["prompts"] for r in rounds],
                [r["samples"]["unfinished"] for r in rounds],
                [r["edits"]["edited"] for r in rounds],
                [r["edits"]["unchanged"] for r in rounds],
            ]
            measured = [
                [r["reward_model"][when][name] for r in rounds]
                for name in ("token_auroc", "accuracy")
                for when in ("before", "after")
            ]
            cells = [f"{np.mean(values):.0f}" for values in counts] + [f"{np.mean(values):.3f}" for values in measured]
            lines.append(f"| {arm}, {place + 1} | {' | '.join(cells)} |")
    return lines


def _seeds_table(seeds: list[int], results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Seed by seed",
        "",
        "The judge's score at the end, and the KL in nats.",
        "",
        f"| seed | {' | '.join(ARMS)} |",
        f"| --- |{' --- |' * len(ARMS)}",
    ]
    for seed, result in zip(seeds, results, strict=True):
        ends = (result[arm]["curve"][-1] for arm in ARMS)
        cells = [f"{end['score']:.2f} ({end['kl']:.2f})" for end in ends]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "part", choices=("run", "report"), help="run the seeds, or write the report of those that are done"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/rounds"), help="folder for what is run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    arguments = parser.parse_args()
    if arguments.part == "run":
        for seed in arguments.seeds:
            run_seed(seed, arguments.output)
        return
    from density_report import RESULTS

    names = [f"{arm.replace(' ', '_')}.json" for arm in ARMS]
    seeds = [seed for seed in arguments.seeds if all((arguments.output / str(seed) / n).exists() for n in names)]
    results = [
        {
            arm: json.loads((arguments.output / str(seed) / name).read_text())
            for arm, name in zip(ARMS, names, strict=True)
        }
        for seed in seeds
    ]
    command = shlex.join(["python", "benchmarks/rounds.py", "run", "--seeds", *map(str, seeds)])
    (RESULTS / "rounds.md").write_text(report(seeds, results, command), encoding="utf-8")


if __name__ == "__main__":
    main()
