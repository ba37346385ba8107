"""How far can a policy get by a reward model? The best of several answers of the start policy, by each score and by the
judge.

    python benchmarks/best_of.py --corpus demo
    python benchmarks/best_of.py --corpus paradetox --data <folder>

Policy, reward model and judge are those that `grpo_density.py` has prepared. No training: where the answer that the
reward model likes best hardly wins, no way to train on its scores wins by much.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np
import torch
from grpo_density import FOLDERS, RESULTS, TASKS
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from density_report import machine
from provenance import commit
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.reward_model.text_scores import TextScores
from trl_tokenreward.utils.statistics import bootstrap_interval, pairwise_outcomes


ANSWERS = 8


def sum_of_tokens(answer: TextScores) -> float:
    """The token scores of an answer as PPO and GRPO read them: log-sigmoids, summed."""
    return float(logsigmoid(torch.tensor(answer.token_scores, dtype=torch.float64)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", choices=list(TASKS), default="demo")
    parser.add_argument("--data", type=Path, help="Folder with ParaDetox.")
    parser.add_argument("--output", type=Path, help="Folder with what `grpo_density.py` prepared.")
    arguments = parser.parse_args()
    folder = arguments.output or FOLDERS[arguments.corpus]
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "start_policy")
    policy = LlamaForCausalLM.from_pretrained(folder / "start_policy", dtype=torch.float32)
    reward_model = TokenRewardModel.from_pretrained(folder / "reward_model", dtype=torch.float32)
    _, examiner, _ = TASKS[arguments.corpus](arguments.data, policy, tokenizer)
    prompts, sampler = examiner.sampler.prompts, examiner.sampler
    # One row for each answer of a prompt: its scores, by who gives them.
    by_scorer: dict[str, list[list[float]]] = {"the judge": [], "sequence score": [], "sum of token scores": []}
    for seed in range(1, ANSWERS + 1):
        sampler.seed = seed
        answers = [answer.text for answer in sampler(policy)]
        scores = reward_model.score_texts(answers, tokenizer, prompts)
        by_scorer["the judge"].append(examiner.judge(prompts, answers))
        by_scorer["sequence score"].append([s.score for s in scores])
        by_scorer["sum of token scores"].append([sum_of_tokens(s) for s in scores])
    judged = np.array(by_scorer["the judge"])
    lines = [
        f"# The best of {ANSWERS} answers, {arguments.corpus}",
        "",
        f"`python benchmarks/best_of.py --corpus {arguments.corpus}`, {date.today()}, commit {commit()}, {machine()}.",
        "",
        f"{ANSWERS} answers of the start policy to each of {len(prompts)} held-out prompts; the best by each score, "
        "against another answer of the start policy. 95 % bootstrap intervals over the prompts.",
        "",
        "| best by | win rate |",
        "| --- | --- |",
    ]
    for name, values in by_scorer.items():
        best = judged[np.argmax(values, axis=0), np.arange(len(prompts))]
        outcomes = pairwise_outcomes(best.tolist(), examiner.start.scores)
        low, high = bootstrap_interval(outcomes, 0)
        lines.append(f"| {name} | {np.mean(outcomes):.3f} ({low:.3f} to {high:.3f}) |")
    text = "\n".join(lines) + "\n"
    (RESULTS / f"best_of_{arguments.corpus}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
