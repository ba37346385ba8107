"""Evaluation: win rates of policies against references, and what a token reward model gets right."""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from .data import SIDES, DataCollatorForTokenReward, prepare_dataset
from .modeling import TokenRewardModel, evaluation_mode
from .packing import without_peft
from .prompts import DataCollatorForPrompts, Prompts, join, prepare_prompts
from .reward_losses import edit_pair_wins, token_auroc
from .rollout import PolicyAndValue, completion_logps, generate, independent_copy, uniforms
from .sharding import is_fsdp2, is_zero3


if TYPE_CHECKING:
    from .judges import Judge, Prompt


# --- statistics ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval, `low` to `high`. NaN where there was nothing to measure."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def pairwise_outcomes(scores_a: Sequence[float], scores_b: Sequence[float]) -> list[float]:
    """Returns, prompt by prompt, 1 where `scores_a` is higher, 0 where it is lower and 0.5 where they are equal.

    The mean of the outcomes is the [`win_rate`], and [`bootstrap_interval`] of them is its interval.

    Args:
        scores_a (`Sequence[float]`):
            Scores of the answers of A, one for each prompt.
        scores_b (`Sequence[float]`):
            Scores of the answers of B to the same prompts, in the same order.

    Raises:
        `ValueError`: if the lengths differ, if there are no scores, or if one of them is not a finite number.
    """
    a, b = _finite(scores_a, "scores_a"), _finite(scores_b, "scores_b")
    if len(a) != len(b):
        raise ValueError(
            f"scores_a and scores_b belong to the same prompts, but there are {len(a)} and {len(b)} of them"
        )
    return ((a > b) + 0.5 * (a == b)).tolist()


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float]) -> float:
    """The share of prompts at which A scores higher than B; a tie counts half. See [`pairwise_outcomes`]."""
    return float(np.mean(pairwise_outcomes(scores_a, scores_b)))


def bootstrap_interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean of `values`.

    Efron (1979): means of `resamples` samples of the same size, drawn with replacement; the interval leaves out
    `(1 - level) / 2` of them at either end. With a few dozen values or fewer it is somewhat too narrow.

    Args:
        values (`Sequence[float]`):
            Independent observations, such as the outcomes of [`pairwise_outcomes`].
        seed (`int`):
            The same seed gives the same interval.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage, between 0 and 1.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of samples drawn.

    Raises:
        `ValueError`: if there are no values, one is not finite, or `level` or `resamples` is out of range.
    """
    observed = _finite(values, "values")
    _check_bootstrap(level, resamples)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(observed, size=len(observed)).mean() for _ in range(resamples)])
    return _quantiles(means, level)


def length_controlled_win_rate(
    outcomes: Sequence[float], length_differences: Sequence[float], counts: np.ndarray | None = None
) -> float | np.ndarray:
    r"""The win rate that is left at equal lengths, after AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475).

    With d the difference in length, the outcomes y follow a logistic regression, without the paper's term for the
    difficulty of a prompt, and the result is its value at d = 0:

        P(y = 1) = sigmoid(a + b tanh(d / std(d))),   win rate = sigmoid(a)

    Where the fit does not exist, nothing can be told about equal lengths and the result is the plain win rate: if all
    lengths differ by the same, if all outcomes are 1 or all are 0, or if the wins are separated from the losses by length
    (no loss is longer than any win, or none is shorter). A tie counts as half a win and half a loss.

    Args:
        outcomes (`Sequence[float]`):
            n numbers from 0 to 1.
        length_differences (`Sequence[float]`):
            n lengths of the answers that win at 1, less those of the others, in any unit.
        counts (`np.ndarray`, *optional*):
            Shape (R, n): how often each pair stands in each of R bootstrap samples. `std(d)` stays that of all.

    Returns:
        `float`, or with `counts` an array of shape (R,).
    """
    y, d = _finite(outcomes, "outcomes"), _finite(length_differences, "length_differences")
    if len(y) != len(d) or y.min() < 0 or y.max() > 1:
        raise ValueError("outcomes are numbers from 0 to 1, and length_differences has one number for each of them")
    x = np.tanh(d / d.std()) if d.std() > 0 else np.zeros_like(d)
    n = np.ones((1, len(y))) if counts is None else np.asarray(counts, dtype=float)
    rates = n @ y / n.sum(1)
    win, loss = (n > 0) & (y > 0), (n > 0) & (y < 1)
    separated = np.where(win, x, np.inf).min(1) >= np.where(loss, x, -np.inf).max(1)
    separated |= np.where(win, x, -np.inf).max(1) <= np.where(loss, x, np.inf).min(1)
    if not separated.all():
        intercepts = _fit_logistic(x, y, n[~separated])
        rates[~separated] = 1 / (1 + np.exp(-intercepts))
    return float(rates[0]) if counts is None else rates


def _fit_logistic(x: np.ndarray, y: np.ndarray, counts: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """Intercepts, (R,), of R logistic regressions of y on x, both (n,), weighted by counts, (R, n): Newton's method with
    halved steps."""

    def loss(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        z = a[:, None] + b[:, None] * x
        return (counts * (np.logaddexp(0, z) - y * z)).sum(1) + ridge / 2 * (a**2 + b**2)

    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(100):
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * x)))
        residuals, weights = counts * (p - y), counts * p * (1 - p)
        gradient_a, gradient_b = residuals.sum(1) + ridge * a, residuals @ x + ridge * b
        aa, ab, bb = weights.sum(1) + ridge, weights @ x, weights @ x**2 + ridge
        determinant = aa * bb - ab**2
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        before, scale = loss(a, b), np.ones(len(counts))
        for _ in range(40):
            worse = loss(a - scale * step_a, b - scale * step_b) > before + 1e-12
            if not worse.any():
                break
            scale[worse] /= 2
        a, b = a - scale * step_a, b - scale * step_b
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-10:
            break
    return a


def _resampled(size: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of `size` rows stands in each bootstrap sample, (size,)."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(size, size=size), minlength=size)


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_bootstrap(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, but is {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, but is {resamples}")


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a list of at least one number, but has the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not a finite number")
    return array


def _json_ready(value: Any) -> Any:
    """JSON has no NaN; it becomes null."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


# --- win rates -----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """An answer to a prompt: its tokens, with the stop token; its text, without special tokens; and whether it ended with
    the stop token, `None` for a given one."""

    ids: list[int]
    text: str
    ended: bool | None


class AnswerSampler:
    """Samples answers to the same prompts of one model after another, all with the same random numbers, so that equal
    models give equal answers.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The models' tokenizer.
        prompts ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `list`):
            Rows as [`~prompts.prepare_prompts`] takes them, or a list of texts or of messages.
        response_length (`int`, *optional*, defaults to `128`):
            Most tokens of an answer.
        temperature (`float`, *optional*, defaults to `1.0`):
            0 is greedy.
        stop_token_id (`int`, `"eos"` or `None`, *optional*, defaults to `"eos"`):
            Ends an answer. `None`: all answers have `response_length` tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in one forward pass.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random numbers, which are this sampler's own.

    Raises:
        `TypeError`, `ValueError`: for bad arguments, and when called if a prompt leaves no room for an answer.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase,
        prompts: "Dataset | IterableDataset | list[Prompt]",
        *,
        response_length: int = 128,
        temperature: float = 1.0,
        stop_token_id: int | Literal["eos"] | None = "eos",
        batch_size: int = 16,
        seed: int = 0,
    ):
        if response_length < 1 or batch_size < 1 or temperature < 0:
            raise ValueError(
                "`response_length` and `batch_size` must be at least 1 and `temperature` not below 0, got "
                f"{response_length}, {batch_size} and {temperature}."
            )
        if stop_token_id == "eos":
            stop_token_id = processing_class.eos_token_id
            if stop_token_id is None:
                raise ValueError("`stop_token_id='eos'`, but the tokenizer has no EOS token.")
        if not isinstance(prompts, (Dataset, IterableDataset)):
            if not isinstance(prompts, list) or {type(prompt) for prompt in prompts} not in ({str}, {list}):
                raise TypeError("`prompts` must be a data set, or a list of texts or of lists of messages, not empty.")
            prompts = Dataset.from_dict({"prompt": prompts})
        self.tokenizer, self.response_length, self.temperature = processing_class, response_length, temperature
        self.stop_token_id, self.batch_size, self.seed = stop_token_id, batch_size, seed
        rows = list(prepare_prompts(prompts, processing_class, "evaluation"))
        self._ids = [list(row["input_ids"]) for row in rows]
        if not all(self._ids) or not rows:
            where = f"Row {self._ids.index([])} of the evaluation prompts" if rows else "The evaluation data set"
            raise ValueError(f"{where} is empty: leave it out or give it a token.")
        texts = processing_class.batch_decode(self._ids, skip_special_tokens=True)
        # What the judges read.
        self.prompts = [row.get("prompt", text) for row, text in zip(rows, texts, strict=True)]

    def __call__(self, model: nn.Module) -> list[Answer]:
        """The model's answers to the prompts, in evaluation mode."""
        limit = getattr(without_peft(model).config.get_text_config(), "max_position_embeddings", None)
        longest = max(range(len(self._ids)), key=lambda index: len(self._ids[index]))
        if limit is not None and len(self._ids[longest]) + self.response_length > limit:
            raise ValueError(
                f"Row {longest} of the evaluation prompts has {len(self._ids[longest])} tokens; with `response_length="
                f"{self.response_length}` it does not fit in the model's {limit} positions. Shorten one of them."
            )
        answers = []
        with evaluation_mode(model):
            for rows, prompts in self._batches(model):
                completions = generate(
                    model,
                    prompts,
                    uniforms((self.seed,), rows, self.response_length),
                    temperature=self.temperature,
                    stop_token_id=self.stop_token_id,
                    pad_token_id=self._pad_token_id,
                )
                ids = [row[real.bool()].tolist() for row, real in zip(completions.ids, completions.mask, strict=True)]
                texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                answers += map(Answer, ids, texts, completions.ended.tolist())
        return answers

    @torch.no_grad()
    def log_probabilities(self, model: nn.Module, answers: list[Answer]) -> list[float]:
        """The log-probability of each answer at the sampling temperature (1 where that is 0), in nats."""
        logps = []
        with evaluation_mode(model):
            for rows, prompts in self._batches(model):
                ids = [torch.tensor(answers[row].ids, device=prompts.ids.device) for row in rows]
                mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
                inputs = join(prompts, nn.utils.rnn.pad_sequence(ids, batch_first=True), mask)
                by_token = completion_logps(model, *inputs, mask.shape[1], self.temperature or 1.0)
                logps += by_token.double().sum(1).tolist()
        return logps

    def given(self, texts: Sequence[str], name: str) -> list[Answer]:
        """Given texts as answers. The stop token, if there is one, counts as one of their tokens, as it does in samples."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`{name}` must be a model or a list of texts, one for each prompt.")
        if len(texts) != len(self._ids):
            raise ValueError(f"`{name}` has {len(texts)} answers, but there are {len(self._ids)} prompts.")
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        stop = [] if self.stop_token_id is None else [self.stop_token_id]
        return [Answer([*row, *stop], text, None) for row, text in zip(ids, texts, strict=True)]

    @property
    def _pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id or 0  # any would do, for masks say what is real

    def _batches(self, model: nn.Module) -> Iterator[tuple[range, Prompts]]:
        collate, device = DataCollatorForPrompts(self._pad_token_id), next(model.parameters()).device
        for first in range(0, len(self._ids), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(self._ids)))
            batch = collate([{"input_ids": self._ids[row]} for row in rows])
            yield rows, Prompts(batch["input_ids"].to(device), batch["attention_mask"].to(device))


@dataclass(frozen=True)
class Comparison:
    """One prompt of a [`WinRate`]: both answers, the judge's outcome for the policy's (NaN where there was no verdict), their
    lengths in tokens, whether they ended, and the policy's log-probability of its answer less the reference's, in nats."""

    prompt: "Prompt"
    answer: str
    reference_answer: str
    outcome: float
    length: int
    reference_length: int
    ended: bool
    reference_ended: bool | None
    kl: float | None


@dataclass(frozen=True)
class WinRate:
    """How a policy's answers fare against a reference's.

    Args:
        win_rate ([`Estimate`]):
            Mean outcome of the pairs that got a verdict; a tie counts half.
        length_controlled ([`Estimate`]):
            See [`length_controlled_win_rate`].
        wins, ties, losses, failed (`int`):
            Outcomes above, at and below 0.5, and pairs without a verdict, which no rate counts.
        kl (`float` or `None`):
            Mean over the policy's answers of log p - log q, in nats a completion; `None` where the reference is no model.
        length, reference_length (`float`):
            Mean tokens of an answer, stop token included.
        ended, reference_ended (`float` or `None`):
            Share of answers that end with the stop token; `None` for given ones.
        comparisons (`tuple[Comparison, ...]`):
            Prompt by prompt.
    """

    win_rate: Estimate
    length_controlled: Estimate
    wins: int
    ties: int
    losses: int
    failed: int
    kl: float | None
    length: float
    reference_length: float
    ended: float
    reference_ended: float | None
    comparisons: tuple[Comparison, ...]

    def table(self) -> str:
        """The figures in markdown."""
        reference_ended = "–" if self.reference_ended is None else f"{self.reference_ended:.2f}"
        rows = {
            "win rate": self.win_rate,
            "win rate, length-controlled": self.length_controlled,
            "wins / ties / losses": f"{self.wins} / {self.ties} / {self.losses}",
            "pairs without a verdict": self.failed,
            "KL to the reference (nats)": "–" if self.kl is None else f"{self.kl:.2f}",
            "mean length, reference's (tokens)": f"{self.length:.1f}, {self.reference_length:.1f}",
            "share that ended, reference's": f"{self.ended:.2f}, {reference_ended}",
        }
        return _markdown("", "policy", rows)

    __str__ = table

    def save(self, path: str | Path) -> None:
        """Write the figures to `figures.json` and the answers to `answers.jsonl` in the folder `path`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        figures = asdict(self)
        answers = figures.pop("comparisons")
        (folder / "figures.json").write_text(json.dumps(_json_ready(figures), indent=2) + "\n", encoding="utf-8")
        lines = [json.dumps(_json_ready(answer), ensure_ascii=False) + "\n" for answer in answers]
        (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")


def evaluate_win_rate(
    policy: nn.Module,
    reference: nn.Module | Sequence[str],
    processing_class: PreTrainedTokenizerBase,
    prompts: "Dataset | IterableDataset | list[Prompt]",
    judge: "Judge",
    *,
    response_length: int = 128,
    temperature: float = 1.0,
    stop_token_id: int | Literal["eos"] | None = "eos",
    batch_size: int = 16,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> WinRate:
    """Sample an answer of a policy and of a reference to every held-out prompt and have a judge compare them.

    Both sample with the same random numbers, so that equal models tie at every prompt.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        reference (`PreTrainedModel`, `PeftModel` or `Sequence[str]`):
            Another with the same tokenizer, or given answers, one for each prompt, such as a person's.
        judge ([`Judge`]):
            Says which answer is better, see [`~judges`]. It reads prompts as the data set has them, texts or messages, or
            decoded where it has tokens alone, and answers without special tokens.
        processing_class, prompts, response_length, temperature, stop_token_id, batch_size, seed:
            See [`AnswerSampler`]. The seed is the bootstrap's too.
        level, resamples:
            Of the bootstrap over prompts, see [`bootstrap_interval`].

    Raises:
        `TypeError`, `ValueError`: for bad arguments, and if the judge returns something else than one number from 0 to 1 (or
            NaN) for each prompt, or no verdict at all.
    """
    _check_bootstrap(level, resamples)
    sampler = AnswerSampler(
        processing_class,
        prompts,
        response_length=response_length,
        temperature=temperature,
        stop_token_id=stop_token_id,
        batch_size=batch_size,
        seed=seed,
    )
    is_model = isinstance(reference, nn.Module)
    reference_answers = sampler(reference) if is_model else sampler.given(reference, "reference")
    answers = sampler(policy)
    kl = None
    if is_model:
        logps = (sampler.log_probabilities(model, answers) for model in (policy, reference))
        kl = [p - q for p, q in zip(*logps, strict=True)]
    return _compare(sampler, answers, reference_answers, kl, judge, level, resamples)


def _compare(
    sampler: AnswerSampler,
    answers: list[Answer],
    reference_answers: list[Answer],
    kl: list[float] | None,
    judge: "Judge",
    level: float,
    resamples: int,
) -> WinRate:
    texts = [[answer.text for answer in side] for side in (answers, reference_answers)]
    outcomes = np.asarray(judge(list(sampler.prompts), *texts), dtype=float)
    if outcomes.shape != (len(answers),) or ((outcomes < 0) | (outcomes > 1)).any():
        raise ValueError(
            f"`judge` must return {len(answers)} numbers from 0 to 1, one for each prompt, got {outcomes.tolist()}."
        )
    judged = ~np.isnan(outcomes)
    if not judged.any():
        raise ValueError("`judge` gave no verdict on any pair.")
    lengths = np.array([[len(answer.ids) for answer in side] for side in (answers, reference_answers)])
    y, differences = outcomes[judged], (lengths[0] - lengths[1])[judged]
    controlled, counts = [], _resampled(len(y), sampler.seed, resamples)
    while chunk := list(islice(counts, 200)):  # some at a time, for they are as many tables as large as the data
        controlled.append(length_controlled_win_rate(y, differences, np.stack(chunk)))
    comparisons = [
        Comparison(prompt, a.text, b.text, float(outcome), len(a.ids), len(b.ids), a.ended, b.ended, nats)
        for prompt, a, b, outcome, nats in zip(
            sampler.prompts, answers, reference_answers, outcomes, kl or [None] * len(answers), strict=True
        )
    ]
    sampled = reference_answers[0].ended is not None
    return WinRate(
        win_rate=Estimate(float(y.mean()), *bootstrap_interval(y, sampler.seed, level, resamples)),
        length_controlled=Estimate(
            length_controlled_win_rate(y, differences), *_quantiles(np.concatenate(controlled), level)
        ),
        wins=int((y > 0.5).sum()),
        ties=int((y == 0.5).sum()),
        losses=int((y < 0.5).sum()),
        failed=int((~judged).sum()),
        kl=None if kl is None else float(np.mean(kl)),
        length=float(lengths[0].mean()),
        reference_length=float(lengths[1].mean()),
        ended=float(np.mean([answer.ended for answer in answers])),
        reference_ended=float(np.mean([answer.ended for answer in reference_answers])) if sampled else None,
        comparisons=tuple(comparisons),
    )


class WinRateCallback(TrainerCallback):
    """
    Logs the win rate of the policy in training against where it started, and saves the answers.

    For a [`FineGrainedPPOTrainer`] the reference is the trainer's own, and its answers are sampled once, when the training
    begins. Every so many updates the policy answers the same prompts, and `eval_win_rate`, `eval_win_rate_low`,
    `eval_win_rate_high`, `eval_win_rate_length_controlled`, `eval_kl` and `eval_completion_length` are logged. Answers go to
    `output_dir/win_rate/step-<global step>`, see [`WinRate.save`]. Samples come from transformers, even where the trainer's
    come from vLLM. Nothing of the run is changed by it, its random numbers included.

    On several processes the main one does all of it while the others wait, so it must take less time than their
    communication may.

    Args:
        trainer ([`FineGrainedPPOTrainer`] or [`~transformers.Trainer`]):
            The trainer to which the callback is added: `trainer.add_callback(WinRateCallback(trainer, ...))`.
        judge ([`Judge`]):
            Says which answer is better. What it raises ends the training.
        prompts:
            Held-out prompts, see [`AnswerSampler`].
        every (`int`, *optional*, defaults to `1`):
            Updates of PPO, or steps of another trainer, from one evaluation to the next.
        reference (`PreTrainedModel` or `Sequence[str]`, *optional*):
            Another reference. With `None`, a trainer that is not PPO's has a copy of its model made when the training
            begins.
        level, resamples:
            Of the bootstrap, see [`evaluate_win_rate`].
        sampling:
            `response_length`, `temperature`, `stop_token_id`, `batch_size` and `seed`, see [`AnswerSampler`]. Defaults to
            what a [`FineGrainedPPOTrainer`] evaluates with.

    Raises:
        `ValueError`: if the models are sharded over processes (FSDP, DeepSpeed ZeRO-3), and for bad arguments.
    """

    def __init__(
        self,
        trainer: Trainer,
        judge: "Judge",
        prompts: "Dataset | IterableDataset | list[Prompt]",
        *,
        every: int = 1,
        reference: PreTrainedModel | Sequence[str] | None = None,
        level: float = 0.95,
        resamples: int = 2000,
        **sampling: Any,
    ):
        from .ppo_trainer import FineGrainedPPOTrainer

        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}.")
        _check_bootstrap(level, resamples)
        accelerator = trainer.accelerator
        if trainer.is_fsdp_enabled or is_fsdp2(accelerator) or is_zero3(accelerator):
            raise ValueError(
                "WinRateCallback runs on one process, but these models are sharded over all of them. Evaluate checkpoints "
                "with `evaluate_win_rate` instead."
            )
        self.trainer, self.judge, self.reference = trainer, judge, reference
        self.level, self.resamples = level, resamples
        self.is_ppo = isinstance(trainer, FineGrainedPPOTrainer)
        self.steps = every * trainer.steps_per_update if self.is_ppo else every
        if self.is_ppo:
            sampling = {
                "response_length": trainer.args.response_length,
                "temperature": trainer._eval_temperature,
                "stop_token_id": trainer.stop_token_id,
                "batch_size": trainer.args.per_device_eval_batch_size,
                "seed": trainer.args.seed,
                **sampling,
            }
        self.sampler = AnswerSampler(trainer.processing_class, prompts, **sampling)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.reference is None and not self.is_ppo:
            if state.global_step > 0:
                raise ValueError(
                    "A resumed run no longer has the model that it began with: pass it as `reference` to WinRateCallback."
                )
            self.reference = independent_copy(model).requires_grad_(False)
        with self._undisturbed(), self._reference_model() as reference:
            is_model = isinstance(reference, nn.Module)
            self._answers = self.sampler(reference) if is_model else self.sampler.given(reference, "reference")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.steps != 0 or not state.is_world_process_zero:
            return
        policy = model.policy if isinstance(model, PolicyAndValue) else model
        with self._undisturbed():
            answers, kl = self.sampler(policy), None
            logps = self.sampler.log_probabilities(policy, answers)
            with self._reference_model() as reference:  # it may be the policy itself, without its adapter
                if isinstance(reference, nn.Module):
                    reference_logps = self.sampler.log_probabilities(reference, answers)
                    kl = [p - q for p, q in zip(logps, reference_logps, strict=True)]
            result = _compare(self.sampler, answers, self._answers, kl, self.judge, self.level, self.resamples)
        result.save(Path(args.output_dir) / "win_rate" / f"step-{state.global_step}")
        metrics = {
            "eval_win_rate": result.win_rate.value,
            "eval_win_rate_low": result.win_rate.low,
            "eval_win_rate_high": result.win_rate.high,
            "eval_win_rate_length_controlled": result.length_controlled.value,
            "eval_completion_length": result.length,
        }
        if result.kl is not None:
            metrics["eval_kl"] = result.kl
        self.trainer.log(metrics)

    @contextmanager
    def _reference_model(self) -> Iterator[nn.Module | Sequence[str]]:
        own = self.trainer._reference_policy() if self.reference is None else nullcontext(self.reference)
        with own as reference:
            yield reference

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """The trainer's precision, and whatever random numbers a judge draws, not those of the training."""
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            with torch.random.fork_rng(devices), self.trainer.accelerator.autocast():
                yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


# --- token rewards -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenGroup:
    """Tokens of one kind: how many there are, how many of them are edited, how well the scores tell these from the unchanged
    ones (AUROC, NaN where there is nothing to compare), and the mean score of all."""

    name: str
    tokens: int
    edited: int
    auroc: float
    mean_score: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Edited tokens with a probability sigmoid(score) from `low` to `high`: their number, their mean probability, and the
    share of them that was edited in, which would be the same number in a calibrated model. NaN where there are none."""

    low: float
    high: float
    tokens: int
    mean_probability: float
    share_edited_in: float


@dataclass(frozen=True)
class TokenRewardReport:
    """What a token reward model gets right, see [`evaluate_token_rewards`].

    Args:
        rows (`int`), left_out (`dict[str, int]`):
            Pairs that were measured, and [`~data.LeftOut`]'s counts.
        sequence_accuracy ([`Estimate`]):
            Share of pairs whose chosen side scores higher as a whole.
        token_accuracy ([`Estimate`]):
            Share of (edited-in, edited-out) token pairs within a row that are ranked rightly; ties count half.
        token_auroc ([`Estimate`]):
            How well low scores find the edited-out tokens among the completion's tokens of the rejected sides.
        calibration_error (`float`):
            Expected calibration error: |mean probability - share edited in|, averaged over the edited tokens.
        reliability (`tuple[ReliabilityBin, ...]`):
            The bins of that average.
        by_position, by_length (`tuple[TokenGroup, ...]`):
            Tokens of the rejected sides by their place in the completion, and by the completion's length, in bins with
            about the same number of rows.
        by_kind (`tuple[TokenGroup, ...]`):
            Tokens of one kind of edit beside the unchanged ones of the same side: for deletions and replacements on the
            rejected side, where low scores should find them; for insertions, which leave no token there, on the chosen
            side, where high scores should.
        rows_without_kind (`int`):
            Rows whose sides differ outside of their edit masks (such as those with spans of their own), so that nothing
            says what became what. They are not in `by_kind`.
    """

    rows: int
    left_out: dict[str, int]
    sequence_accuracy: Estimate
    token_accuracy: Estimate
    token_auroc: Estimate
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    by_position: tuple[TokenGroup, ...]
    by_length: tuple[TokenGroup, ...]
    by_kind: tuple[TokenGroup, ...]
    rows_without_kind: int

    def table(self) -> str:
        """The figures as markdown tables."""
        rows = {
            "rows": self.rows,
            "rows left out": self.left_out["rows"] - self.left_out["kept"],
            "sequence accuracy": self.sequence_accuracy,
            "token accuracy": self.token_accuracy,
            "AUROC of wrong tokens": self.token_auroc,
            "expected calibration error": _number(self.calibration_error),
        }
        tables = [_markdown("", "token reward model", rows)]
        for title in ("position", "length", "kind"):
            groups = {
                group.name: f"{group.tokens} | {group.edited} | {_number(group.auroc)} | {_number(group.mean_score)}"
                for group in getattr(self, f"by_{title}")
            }
            tables.append(_markdown(title, "tokens | edited | AUROC | mean score", groups))
        bins = {
            f"{b.low:.2f} to {b.high:.2f}": f"{b.tokens} | {_number(b.mean_probability)} | {_number(b.share_edited_in)}"
            for b in self.reliability
        }
        tables.append(_markdown("probability", "edited tokens | mean probability | share edited in", bins))
        return "\n\n".join(tables)

    __str__ = table

    def save(self, path: str | Path) -> None:
        """Write the figures to a JSON file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(_json_ready(asdict(self)), indent=2) + "\n", encoding="utf-8")


class _Tokens(NamedTuple):
    """The completion tokens of one side of all rows, each of shape (N,)."""

    row: np.ndarray
    score: np.ndarray
    edited: np.ndarray
    kind: np.ndarray
    place: np.ndarray
    length: np.ndarray


def evaluate_token_rewards(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
    *,
    max_length: int | None = None,
    max_edit_ratio: float | None = None,
    use_anchors: bool = False,
    batch_size: int = 8,
    num_bins: int = 10,
    num_groups: int = 5,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 1000,
) -> TokenRewardReport:
    """Measure a token reward model on held-out preference pairs.

    Sequence accuracy, token accuracy and AUROC are those of [`TokenRewardTrainer.evaluate`] on the same data with the same
    settings (its `eval_accuracy` is a mean over batches, so that is the same where all batches have one size).

    Prepared rows do not hold the kind of an edit. It follows from their masks: without their masked tokens both sides are
    equal, so an edit is a gap between two kept tokens. A gap with masked tokens on both sides is a replacement, with some on
    the rejected side alone a deletion, on the chosen side alone an insertion, as in [`EditAlignment.operations`].

    Args:
        model ([`TokenRewardModel`] or `PeftModel`):
            The model, or an adapter around one.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Preference rows in any format of [`~data.prepare_dataset`], prepared ones too.
        max_length, max_edit_ratio, use_anchors:
            As in [`TokenRewardConfig`].
        batch_size (`int`, *optional*, defaults to `8`):
            Pairs in one forward pass.
        num_bins (`int`, *optional*, defaults to `10`):
            Bins of the calibration, of equal width.
        num_groups (`int`, *optional*, defaults to `5`):
            Groups of positions and of lengths.
        seed, level, resamples:
            Of the bootstrap over rows, see [`bootstrap_interval`].

    Raises:
        `TypeError`: if the model is no token reward model.
        `ValueError`: for malformed rows, if no rows are left, and for bad numbers.
    """
    if not isinstance(without_peft(model), TokenRewardModel):
        raise TypeError(f"`model` must be a TokenRewardModel or an adapter around one, got {type(model).__name__}.")
    for name, value in {"batch_size": batch_size, "num_bins": num_bins, "num_groups": num_groups}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    _check_bootstrap(level, resamples)
    rows, left_out = prepare_dataset(
        dataset, processing_class, max_length=max_length, max_edit_ratio=max_edit_ratio, name="evaluation"
    )
    table, sides, unknown = _score_rows(model, processing_class, rows, use_anchors, batch_size)
    left_out.require_rows("evaluation")
    chosen, rejected = sides["chosen"], sides["rejected"]

    won, wins, pairs = table.T
    _, rank = np.unique(-rejected.score, return_inverse=True)
    resampled = np.array(
        [
            (n @ won / len(n), _ratio(n @ wins, n @ pairs), _auroc_of_ranks(rank, rejected.edited, n[rejected.row]))
            for n in _resampled(len(table), seed, resamples)
        ]
    )
    values = won.mean(), _ratio(wins.sum(), pairs.sum()), _auroc(-rejected.score, rejected.edited)
    # A sample may have drawn no row with an edit, where there are few.
    measured = [column[~np.isnan(column)] for column in resampled.T]
    intervals = [_quantiles(column, level) if len(column) else (math.nan, math.nan) for column in measured]
    figures = [Estimate(float(value), *interval) for value, interval in zip(values, intervals, strict=True)]

    edited_scores = np.concatenate([side.score[side.edited] for side in (chosen, rejected)])
    labels = np.repeat([1.0, 0.0], [chosen.edited.sum(), rejected.edited.sum()])
    reliability = _reliability(torch.from_numpy(edited_scores).double().sigmoid().numpy(), labels, num_bins)
    gaps = [b.tokens * abs(b.mean_probability - b.share_edited_in) for b in reliability if b.tokens]
    return TokenRewardReport(
        rows=len(table),
        left_out=left_out.counts(),
        sequence_accuracy=figures[0],
        token_accuracy=figures[1],
        token_auroc=figures[2],
        calibration_error=_ratio(sum(gaps), len(labels)),
        reliability=reliability,
        by_position=_by_position(rejected, num_groups),
        by_length=_by_length(rejected, num_groups),
        by_kind=_by_kind(chosen, rejected),
        rows_without_kind=unknown,
    )


@torch.no_grad()
def _score_rows(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict], use_anchors: bool, batch_size: int
) -> tuple[np.ndarray, dict[str, _Tokens], int]:
    """For each row whether the chosen side won, the token pairs that are ranked rightly and all, (R, 3); the tokens of each
    side; and how many rows do not tell the kinds of their edits."""
    collate = DataCollatorForTokenReward(tokenizer.pad_token_id or 0)
    table, sides, unknown, rows = [], {side: [] for side in SIDES}, 0, iter(rows)
    with evaluation_mode(model):
        while batch_rows := list(islice(rows, batch_size)):
            batch = collate(batch_rows)
            device = next(model.parameters()).device
            output = model(input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device))
            scores, (above, below) = output.token_scores.float().cpu(), output.logits.squeeze(-1).cpu().chunk(2)
            if not (scores[batch["completion_mask"]].isfinite().all() and output.logits.isfinite().all()):
                raise ValueError("`model` gives scores that are not finite numbers, so there is nothing to measure.")
            edited = batch["edit_mask"] | batch["anchor_mask"] if use_anchors else batch["edit_mask"]
            wins = edit_pair_wins(*scores.chunk(2), *edited.chunk(2))
            first = sum(map(len, table))
            table.append(torch.cat([(above > below).unsqueeze(1), wins], dim=1).numpy())
            for index, row in enumerate(batch_rows):
                kinds = edit_kinds(row)
                unknown += kinds is None
                for side, place in zip(SIDES, (index, len(batch_rows) + index), strict=True):
                    inside = batch["completion_mask"][place]
                    n = int(inside.sum())
                    sides[side].append(
                        _Tokens(
                            row=np.full(n, first + index),
                            score=scores[place][inside].numpy(),
                            edited=edited[place][inside].numpy(),
                            kind=np.full(n, "unknown") if kinds is None else kinds[side],
                            place=np.arange(n),
                            length=np.full(n, n),
                        )
                    )
    if not table:  # a stream from which nothing is kept; the caller's counts say why
        return np.zeros((0, 3)), {side: _Tokens(*[np.zeros(0)] * 6) for side in SIDES}, 0
    return (
        np.concatenate(table),
        {s: _Tokens(*map(np.concatenate, zip(*sides[s], strict=True))) for s in SIDES},
        unknown,
    )


def edit_kinds(row: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The kind of edit of each completion token of a prepared row, `"insert"`, `"delete"`, `"replace"` or `""`, by side; or
    `None` where the sides differ outside of their edit masks."""
    masks, gaps, kept = {}, {}, {}
    for side in SIDES:
        inside = np.array(row[f"{side}_completion_mask"], dtype=bool)
        masks[side] = np.array(row[f"{side}_edit_mask"], dtype=bool)[inside]
        kept[side] = np.array(row[f"{side}_ids"])[inside][~masks[side]]
        gaps[side] = (~masks[side]).cumsum()  # kept tokens before each token that is edited
    if not np.array_equal(kept["chosen"], kept["rejected"]):
        return None
    kinds = {}
    for side, other, alone in (("chosen", "rejected", "insert"), ("rejected", "chosen", "delete")):
        both = np.isin(gaps[side], gaps[other][masks[other]])
        kinds[side] = np.where(masks[side], np.where(both, "replace", alone), "")
    return kinds


def _group(name: str, scores: np.ndarray, edited: np.ndarray, sign: int = -1) -> TokenGroup:
    mean = float(scores.mean()) if len(scores) else math.nan
    return TokenGroup(name, len(scores), int(edited.sum()), _auroc(sign * scores, edited), mean)


def _by_position(tokens: _Tokens, groups: int) -> tuple[TokenGroup, ...]:
    which = tokens.place * groups // tokens.length
    names = [f"{100 * i / groups:.0f} to {100 * (i + 1) / groups:.0f} %" for i in range(groups)]
    return tuple(_group(name, tokens.score[which == i], tokens.edited[which == i]) for i, name in enumerate(names))


def _by_length(tokens: _Tokens, groups: int) -> tuple[TokenGroup, ...]:
    if not len(tokens.row):
        return ()
    lengths = tokens.length[np.unique(tokens.row, return_index=True)[1]]
    # Of many rows of one length, two edges may be one.
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, groups + 1)[1:-1], method="lower"))
    which = np.searchsorted(edges, tokens.length)
    parts = [which == i for i in range(len(edges) + 1) if (which == i).any()]
    return tuple(
        _group(
            f"{tokens.length[part].min()} to {tokens.length[part].max()} tokens",
            tokens.score[part],
            tokens.edited[part],
        )
        for part in parts
    )


def _by_kind(chosen: _Tokens, rejected: _Tokens) -> tuple[TokenGroup, ...]:
    groups = []
    for kind, tokens, sign in (("insert", chosen, 1), ("delete", rejected, -1), ("replace", rejected, -1)):
        # An anchor may count as edited, but it is no token of an edit.
        part = (tokens.kind == kind) | ((tokens.kind == "") & ~tokens.edited)
        groups.append(_group(kind, tokens.score[part], (tokens.kind == kind)[part], sign))
    return tuple(groups)


def _reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> tuple[ReliabilityBin, ...]:
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    result = []
    for i in range(bins):
        inside = which == i
        means = (probabilities[inside].mean(), labels[inside].mean()) if inside.any() else (math.nan, math.nan)
        result.append(ReliabilityBin(i / bins, (i + 1) / bins, int(inside.sum()), *map(float, means)))
    return tuple(result)


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    return token_auroc(torch.from_numpy(scores), torch.from_numpy(labels))


def _auroc_of_ranks(rank: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """AUROC of tokens that count so many times each; all of shape (N,). Equal scores have one rank."""
    size = int(rank.max(initial=-1)) + 1
    above, below = (np.bincount(rank[part], counts[part], size) for part in (labels, ~labels))
    return _ratio(above @ (below.cumsum() - below / 2), above.sum() * below.sum())


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _markdown(corner: str, columns: str, rows: dict[str, Any]) -> str:
    lines = [f"| {corner} | {columns} |", f"|{' --- |' * (columns.count('|') + 2)}"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])
