"""Implicit rewards beside token scores from edits: DPO on the same pairs, then PPO with its rewards, on ParaDetox.

    python benchmarks/implicit_density.py all --data <folder>    # DPO, tune both arms alike, run the seeds, report
    python benchmarks/implicit_density.py report                 # the table of what is there

Data, start policy, reward model, judge and runs are those of `density.py`, which this prepares where they are not there
yet. Runs with a result are not repeated.

Needs scikit-learn: `pip install -e ".[benchmarks]"`.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from density import make_examiner, point_of, prepare, run_all
from density_data import GoldJudge, paradetox
from density_report import cells_of_runs, choose, differences, machine, paired, win_rate_at_kl
from density_settings import (
    BATCH_SIZE,
    KL_COEFS,
    LAMS,
    MAX_KL,
    MAX_LENGTH,
    MAX_LENGTH_ERROR,
    SEEDS,
    TUNING_SEEDS,
    UPDATES,
    Job,
    allowed,
    final,
)
from provenance import commit, stored_runs


RESULTS = Path(__file__).resolve().parent / "results" / "implicit_density.md"
# The rate that was best for nearly all arms of the density dial.
LEARNING_RATE = 3e-4
# DPO's beta is the factor of its implicit rewards too.
BETAS = (0.1, 0.3)
KL_LEVELS = (1, 2, 4)
# The implicit arm's KL coefficients, over DPO's beta: at 1, the best policy is the one that DPO has trained.
KL_FACTORS = (1, 2)
# As many settings for each arm: coefficients of the KL penalty, and options.
SETTINGS: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "token": [(kl_coef, {"lam": lam}) for lam in LAMS for kl_coef in KL_COEFS[:2]],
    "implicit": [
        (round(factor * beta, 3), {"lam": LAMS[0], "reward_model": f"dpo-{beta:g}"})
        for beta in BETAS
        for factor in KL_FACTORS
    ],
}


def train_dpo(beta: float, data: Path, output: Path) -> None:
    """The start policy after DPO on the reward model's pairs, in the folder `dpo-<beta>`, with the training budget and
    the rate of the reward models."""
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    from trl_tokenreward import ImplicitReward
    from trl_tokenreward.data.preprocessing import prepare_dataset
    from trl_tokenreward.reward_model.metrics import token_auroc

    folder = output / f"dpo-{beta:g}"
    if (folder / "metrics.json").exists():
        return
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "start_policy")
    policy, start = (LlamaForCausalLM.from_pretrained(output / "start_policy", dtype=torch.float32) for _ in range(2))
    parts = paradetox(data / "paradetox-8000.tsv")
    trainer = DPOTrainer(
        policy,
        start,
        DPOConfig(
            str(folder),
            beta=beta,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            max_length=MAX_LENGTH,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
        ),
        train_dataset=parts.reward,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    reward = ImplicitReward(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), start, beta)
    test, _ = prepare_dataset(parts.test, tokenizer, max_length=MAX_LENGTH, name="test")
    sums: dict[str, list[float]] = {"chosen": [], "rejected": []}
    scores, wrong = [], []
    for row in test:
        for side, totals in sums.items():
            ids = torch.tensor([row[f"{side}_ids"]])
            mask = torch.tensor(row[f"{side}_completion_mask"]).bool()
            of_tokens = reward.token_scores(ids, torch.ones_like(ids))[0][mask]
            totals.append(float(of_tokens.sum()))
            if side == "rejected":
                scores += of_tokens.tolist()
                wrong += torch.tensor(row["rejected_edit_mask"])[mask].tolist()
    metrics = {
        "beta": beta,
        "accuracy": float(np.mean(np.greater(sums["chosen"], sums["rejected"]))),
        "token_auroc": token_auroc(-torch.tensor(scores), torch.tensor(wrong)),
        "deviation": float(np.std(scores)),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))


def examine_dpo(beta: float, data: Path, output: Path) -> None:
    """What the policy that DPO has trained does by itself, in its folder's `policy.json`."""
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    path = output / f"dpo-{beta:g}" / "policy.json"
    if path.exists():
        return
    torch.set_num_threads(1)
    policy, start = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (path.parent, output / "start_policy")
    )
    parts = paradetox(data / "paradetox-8000.tsv")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "start_policy")
    examiner = make_examiner(parts, GoldJudge(parts.gold), start, tokenizer)
    path.write_text(json.dumps(point_of(examiner.examine(policy), examiner.start)))


def tuning_jobs(arm: str) -> list[Job]:
    return [
        Job(arm, LEARNING_RATE, kl_coef, seed, UPDATES, options)
        for kl_coef, options in SETTINGS[arm]
        for seed in TUNING_SEEDS
    ]


def write_report(output: Path) -> None:
    results = stored_runs(output / "results").values()
    settings = {job._replace(seed=0).name for arm in SETTINGS for job in tuning_jobs(arm)}
    results = [r for r in results if Job(**r["job"])._replace(seed=0).name in settings]
    known = json.loads((output / "prepared.json").read_text())
    human = known["lengths"]["chosen"]
    lines = [
        "# Implicit rewards beside token scores from edits, on ParaDetox",
        "",
        f"`python benchmarks/implicit_density.py all --data <folder>`, {date.today()}, commit {commit()}, {machine()}.",
        "",
        "Policy, reward model, judge and runs are those of [the density dial](density.md). `token`: the token scores "
        "of the reward model that learned from the edits. `implicit`: DPO trains the start policy on the same pairs "
        "(three epochs at a learning rate of 1e-3, as the reward model), and PPO from the start policy gets beta times "
        f"the log ratio of each token, with the package's defaults. Every run: {UPDATES} updates of {BATCH_SIZE} "
        f"completions at a learning rate of {LEARNING_RATE:g}.",
        "",
        "## Rewards, on the test part's edits",
        "",
        "| | edit above original | AUROC of low rewards for wrong tokens |",
        "| --- | --- | --- |",
        f"| token reward model | {known['reward_model']['eval_accuracy']:.3f} | "
        f"{known['reward_model']['eval_token_auroc']:.3f} |",
    ]
    for beta in BETAS:
        of_dpo = json.loads((output / f"dpo-{beta:g}" / "metrics.json").read_text())
        lines.append(f"| DPO, beta {beta:g} | {of_dpo['accuracy']:.3f} | {of_dpo['token_auroc']:.3f} |")
    lines += [
        "",
        "The reward model ranks by its sequence score, DPO by the sum of its implicit rewards.",
        "",
        "## The policies that DPO has trained",
        "",
        "| | win rate | length-controlled | KL (nats) | length |",
        "| --- | --- | --- | --- | --- |",
        *_dpo_rows(output),
        "",
        "## PPO",
        "",
        f"Each arm has the setting with the highest win rate on the tuning seed ({TUNING_SEEDS[0]}) at a KL of at most "
        f"{MAX_KL:g} nats and a length within {MAX_LENGTH_ERROR:.0%} of the people's, of {len(tuning_jobs('token'))} "
        "settings each. Win rates are against the start policy, with 95 % intervals of the mean over the seeds "
        "(Student's t).",
        "",
        f"| arm | setting | seeds | {' | '.join(f'at {level} nats' for level in KL_LEVELS)} | at the end | "
        "length-controlled | KL | length |",
        f"|{' --- |' * (7 + len(KL_LEVELS))}",
    ]
    of_arm = {}
    for arm in SETTINGS:
        tuned = [r for r in results if r["job"]["arm"] == arm and r["job"]["seed"] in TUNING_SEEDS]
        if not tuned:
            of_arm[arm] = []
            lines.append(f"| {arm} | not run yet |{' |' * (5 + len(KL_LEVELS))}")
            continue
        setting = choose(tuned, human)._replace(seed=0)
        runs = [r for r in results if Job(**r["job"])._replace(seed=0) == setting and r["job"]["seed"] in SEEDS]
        of_arm[arm] = runs
        cells = cells_of_runs(runs, KL_LEVELS) if runs else ["not run yet"] + [""] * (3 + len(KL_LEVELS))
        lines.append(f"| {arm} | {_setting(setting)} | {len(runs)} | {' | '.join(cells)} |")
    if pairs := paired(of_arm["implicit"], of_arm["token"]):
        lines += [
            "",
            f"Implicit less token, seed by seed: at {', '.join(map(str, KL_LEVELS))} nats and at the end, "
            f"{', '.join(differences(pairs, KL_LEVELS))}.",
        ]
    lines += [
        "",
        "## Tuning",
        "",
        "| arm | setting | at 4 nats | win rate | KL | length | within bounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in results:
        if run["job"]["seed"] in TUNING_SEEDS:
            job, end = Job(**run["job"]), final(run)
            within = "yes" if allowed(end, human) else "no"
            at_level = win_rate_at_kl(run["curve"], 4)
            level = "–" if at_level is None else f"{at_level:.3f}"
            cells = f"{level} | {end.win_rate:.3f} | {end.kl:.1f} | {end.length:.1f} | {within}"
            lines.append(f"| {job.arm} | {_setting(job)} | {cells} |")
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def _dpo_rows(output: Path) -> list[str]:
    rows = []
    for beta in BETAS:
        point = json.loads((output / f"dpo-{beta:g}" / "policy.json").read_text())
        cells = (
            f"{point['win_rate']:.3f} | {point['length_controlled']:.3f} | {point['kl']:.1f} | {point['length']:.1f}"
        )
        rows.append(f"| DPO, beta {beta:g} | {cells} |")
    return rows


def _setting(job: Job) -> str:
    beta = job.options.get("reward_model", "").removeprefix("dpo-")
    return f"KL coefficient {job.kl_coef:g}, lambda {job.options['lam']:g}" + (f", DPO's beta {beta}" if beta else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["all", "report"])
    parser.add_argument("--data", type=Path, help="Folder with ParaDetox.")
    parser.add_argument("--output", type=Path, default=Path("runs/density"), help="Folder for models and results.")
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, each on one core.")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="How many seeds `all` runs.")
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    if arguments.stage == "report":
        return write_report(output)
    if data is None:
        parser.error("name the folder with --data")
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "prepared.json").exists():
        prepare(data, output)
    for beta in BETAS:
        train_dpo(beta, data, output)
        examine_dpo(beta, data, output)
    human_length = json.loads((output / "prepared.json").read_text())["lengths"]["chosen"]
    chosen = {
        arm: choose(run_all(tuning_jobs(arm), data, output, arguments.jobs), human_length)
        for arm in ("implicit", "token")
    }
    # Seed by seed, so that a run that is stopped has both arms with the seeds that it has.
    jobs = [chosen[arm]._replace(seed=seed) for seed in SEEDS[: arguments.seeds] for arm in SETTINGS]
    run_all(jobs, data, output, arguments.jobs)
    return write_report(output)


if __name__ == "__main__":
    main()
