"""How far can a policy get by a reward model? The best of several answers of the start policy, by each score and by the
judge.

    python benchmarks/best_of.py --corpus demo
    python benchmarks/best_of.py --corpus paradetox --data <folder>
    python benchmarks/best_of.py --corpus imdb --data <folder>    # or detox; needs what their scripts need

Policy, reward model and judge are those that `grpo_density.py`, `imdb.py` or `detox.py` has prepared. No training:
where the answer that the reward model likes best hardly wins, no way to train on its scores wins by much.
"""

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from grpo_density import FOLDERS, RESULTS, TASKS
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from density_report import machine
from provenance import commit
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.evaluation.sampler import AnswerSampler
from trl_tokenreward.reward_model.text_scores import TextScores
from trl_tokenreward.utils.statistics import bootstrap_interval, pairwise_outcomes


ANSWERS = 8


class Task(NamedTuple):
    """Who answers which prompts, who judges, and the judge's scores of one answer to each prompt."""

    sampler: AnswerSampler
    judge: Callable[[list[str], list[str]], list[float]]
    start_scores: list[float]
    # Whether the reward model was trained to read answers with their end.
    with_eos: bool
    bf16: bool


def density_task(corpus: str, data: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Task:
    _, examiner, _ = TASKS[corpus](data, policy, tokenizer)
    return Task(examiner.sampler, examiner.judge, examiner.start.scores, with_eos=True, bf16=False)


def real_task(corpus: str, data: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Task:
    from detox import DETOX
    from imdb import LONG_REVIEWS, REVIEWS
    from real_density import Examiner

    of = {of.name: of for of in (DETOX, REVIEWS, LONG_REVIEWS)}[corpus]
    examiner = Examiner(of, data, policy, tokenizer)
    name, judge = next(iter(examiner.judges.items()))
    return Task(examiner.sampler, judge, examiner.start[name], with_eos=of.stop_token is not None, bf16=True)


CORPORA: dict[str, tuple[Path, Callable[..., Task]]] = {
    **{name: (folder, density_task) for name, folder in FOLDERS.items()},
    **{name: (Path("runs") / name, real_task) for name in ("detox", "imdb", "imdb_long")},
}


def sum_of_tokens(answer: TextScores) -> float:
    """The token scores of an answer as PPO and GRPO read them: log-sigmoids, summed."""
    return float(token_rewards(answer).sum())


def token_rewards(answer: TextScores) -> torch.Tensor:
    return logsigmoid(torch.tensor(answer.token_scores, dtype=torch.float64))


def costliest(answers: list[TextScores], number: int = 30) -> list[str]:
    """The rows of a table: the tokens that take most from all answers together."""
    totals: dict[str, list[float]] = {}
    for answer in answers:
        for token, reward in zip(answer.tokens, token_rewards(answer).tolist(), strict=True):
            totals.setdefault(token.strip().lower(), []).append(reward)
    worst = sorted(totals, key=lambda token: sum(totals[token]))[:number]
    everything = sum(map(sum, totals.values()))
    return [
        f"| `{token.replace('|', '')}` | {len(totals[token])} | {np.mean(totals[token]):.2f} | "
        f"{sum(totals[token]) / everything:.1%} |"
        for token in worst
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", choices=list(CORPORA), default="demo")
    parser.add_argument("--data", type=Path, help="Folder with the data.")
    parser.add_argument("--output", type=Path, help="Folder with what was prepared.")
    arguments = parser.parse_args()
    folder, task_of = CORPORA[arguments.corpus]
    folder = arguments.output or folder
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "start_policy", trust_remote_code=False)
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "trust_remote_code": False}
    policy = AutoModelForCausalLM.from_pretrained(folder / "start_policy", **settings)
    reward_model = TokenRewardModel.from_pretrained(folder / "reward_model", **settings)
    task = task_of(arguments.corpus, arguments.data, policy, tokenizer)
    prompts = task.sampler.prompts
    # One row for each answer of a prompt: its scores, by who gives them.
    scored: list[TextScores] = []
    by_scorer: dict[str, list[list[float]]] = {"the judge": [], "sequence score": [], "sum of token scores": []}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.bf16):
        for seed in range(1, ANSWERS + 1):
            task.sampler.seed = seed
            answers = [answer.text for answer in task.sampler(policy)]
            scores = reward_model.score_texts(answers, tokenizer, prompts, append_eos=task.with_eos)
            scored += scores
            by_scorer["the judge"].append(task.judge(prompts, answers))
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
        outcomes = pairwise_outcomes(best.tolist(), task.start_scores)
        low, high = bootstrap_interval(outcomes, 0)
        lines.append(f"| {name} | {np.mean(outcomes):.3f} ({low:.3f} to {high:.3f}) |")
    lines += [
        "",
        "The tokens that cost all these answers most; a reward is the log-sigmoid of a token score. "
        "A letter ġ is a space.",
        "",
    ]
    lines += ["| token | times | mean reward | share of all |", "| --- | --- | --- | --- |", *costliest(scored)]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"best_of_{arguments.corpus}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
