"""Win rates: a judge compares answers of a policy and of a reference to held-out prompts, during or after
training."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.utils import logging

from ..nn.adapters import reference_adapter
from ..nn.modules import check_loaded, check_own_forward, independent_copy, without_peft
from ..nn.sharding import is_fsdp2, is_zero3
from ..ppo.forward import PolicyAndValue
from ..utils.files import write_text
from ..utils.statistics import (
    Estimate,
    bootstrap_interval,
    check_bootstrap,
    json_ready,
    length_controlled_win_rate,
    markdown,
    quantiles,
    resampled,
    write_figures,
)
from ..utils.validation import check_least
from .judges import Judge, plain_numbers
from .sampler import Answer, AnswerSampler


if TYPE_CHECKING:
    from ..utils.chat_endpoint import Prompt


logger = logging.get_logger(__name__)

Reference: TypeAlias = nn.Module | Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """One prompt of a [`WinRate`]: both answers, the judge's outcome for the policy's (NaN where there was no verdict),
    their lengths in tokens, `True` for those that ended, and the policy's log-probability of its answer less the
    reference's, in nats."""

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
    """Win rate of a policy against a reference, with intervals, KL and lengths.

    Args:
        win_rate ([`~utils.statistics.Estimate`]):
            Mean outcome of the pairs that got a verdict; a tie counts half.
        length_controlled ([`~utils.statistics.Estimate`]):
            See [`~utils.statistics.length_controlled_win_rate`].
        wins, ties, losses, failed (`int`):
            Outcomes above, at and below 0.5, and pairs without a verdict, which no rate counts.
        kl (`float` or `None`):
            Mean over the policy's answers of log p - log q, in nats a completion; `None` where the reference is no
            model.
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
        return markdown("", "policy", rows)

    __str__ = table

    def save(self, path: str | Path) -> None:
        """Write the figures to `figures.json` and the answers to `answers.jsonl` in the folder `path`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        figures = asdict(self)
        answers = figures.pop("comparisons")
        lines = [json.dumps(json_ready(answer), ensure_ascii=False) + "\n" for answer in answers]
        write_text(folder / "answers.jsonl", "".join(lines))
        write_figures(folder / "figures.json", figures)


def evaluate_win_rate(
    policy: nn.Module,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    prompts: "Dataset | IterableDataset | list[Prompt]",
    judge: Judge,
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
            Another with the same tokenizer, or given answers, one for each prompt, such as a person's. Of a policy with
            an adapter it may be the model under it, which answers without the adapter.
        judge ([`Judge`]):
            Says which answer is better, see [`~evaluation.judges`]. It reads prompts as the data set has them, texts or
            messages, or decoded where it has tokens alone, and answers without special tokens.
        tokenizer, prompts, response_length, temperature, stop_token_id, batch_size, seed:
            See [`AnswerSampler`]. The seed is the bootstrap's too.
        level, resamples:
            Of the bootstrap over prompts, see [`~utils.statistics.bootstrap_interval`].

    Raises:
        `TypeError`, `ValueError`: for bad arguments, among them models that run each other's weights, and if the judge
            returns something else than one number from 0 to 1 (or NaN) for each prompt, or no verdict at all.
    """
    check_bootstrap(level, resamples)
    _check_judge(judge)
    _check_models(policy, reference)
    sampler = AnswerSampler(
        tokenizer,
        prompts,
        response_length=response_length,
        temperature=temperature,
        stop_token_id=stop_token_id,
        batch_size=batch_size,
        seed=seed,
    )
    reference_answers = _reference_answers(sampler, _acting(reference, policy))
    answers = sampler(policy, "policy")
    kl = _log_ratios(sampler, policy, _acting(reference, policy), answers)
    return _compare(sampler, answers, reference_answers, kl, judge, level, resamples)


def _policy_of(model: nn.Module) -> nn.Module:
    return model.policy if isinstance(model, PolicyAndValue) else model


def _check_judge(judge: Any) -> None:
    if not callable(judge):
        raise TypeError(f"`judge` must be a judge, or a function that is one, but is a {type(judge).__name__}.")


def _check_models(policy: nn.Module, reference: Reference) -> None:
    check_loaded(policy, "policy")
    check_own_forward(policy, "policy")
    if not isinstance(reference, nn.Module):
        return
    check_own_forward(reference, "reference")
    if is_peft_model(reference) and reference is not policy and without_peft(reference) is without_peft(policy):
        raise ValueError(
            "`policy` and `reference` are one model, on which all its adapters act in both: load the base model a "
            "second time for one of them."
        )


def _acting(reference: Reference, policy: nn.Module) -> AbstractContextManager[Reference]:
    """The reference, without the policy's adapter where it is the model under it: PEFT puts adapters into the model."""
    if is_peft_model(policy) and reference is without_peft(policy):
        return reference_adapter(policy)
    return nullcontext(reference)


def _reference_answers(sampler: AnswerSampler, acting: AbstractContextManager[Reference]) -> list[Answer]:
    with acting as reference:
        is_model = isinstance(reference, nn.Module)
        return sampler(reference, "reference") if is_model else sampler.given(reference, "reference")


def _log_ratios(
    sampler: AnswerSampler, policy: nn.Module, acting: AbstractContextManager[Reference], answers: list[Answer]
) -> list[float] | None:
    """Of the policy's answers, log p - log q; `None` where the reference is no model."""
    logps = sampler.log_probabilities(policy, answers, "policy")
    with acting as reference:  # it may be the policy itself, without its adapter
        if not isinstance(reference, nn.Module):
            return None
        return [p - q for p, q in zip(logps, sampler.log_probabilities(reference, answers, "reference"), strict=True)]


def _compare(
    sampler: AnswerSampler,
    answers: list[Answer],
    reference_answers: list[Answer],
    kl: list[float] | None,
    judge: Judge,
    level: float,
    resamples: int,
) -> WinRate:
    texts = [[answer.text for answer in side] for side in (answers, reference_answers)]
    outcomes = np.asarray(plain_numbers(judge(list(sampler.prompts), *texts)), dtype=float)
    if outcomes.shape != (len(answers),) or ((outcomes < 0) | (outcomes > 1)).any():
        raise ValueError(
            f"`judge` must return {len(answers)} numbers from 0 to 1, one for each prompt, got {outcomes.tolist()}."
        )
    judged = ~np.isnan(outcomes)
    if not judged.any():
        raise ValueError("`judge` gave no verdict on any pair.")
    lengths = np.array([[len(answer.ids) for answer in side] for side in (answers, reference_answers)])
    y, differences = outcomes[judged], (lengths[0] - lengths[1])[judged]
    counts = resampled(len(y), sampler.seed, resamples)
    controlled: list[np.ndarray] = []
    while chunk := list(islice(counts, 200)):  # in chunks: each resample is a table as large as the data
        controlled.append(np.asarray(length_controlled_win_rate(y, differences, np.stack(chunk))))
    nats_of: Sequence[float | None] = kl or [None] * len(answers)
    comparisons = [
        Comparison(prompt, a.text, b.text, float(outcome), len(a.ids), len(b.ids), bool(a.ended), b.ended, nats)
        for prompt, a, b, outcome, nats in zip(
            sampler.prompts, answers, reference_answers, outcomes, nats_of, strict=True
        )
    ]
    sampled = reference_answers[0].ended is not None
    return WinRate(
        win_rate=Estimate(float(y.mean()), *bootstrap_interval(y, sampler.seed, level, resamples)),
        length_controlled=Estimate(
            float(length_controlled_win_rate(y, differences)), *quantiles(np.concatenate(controlled), level)
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

    For a [`FineGrainedPPOTrainer`] the reference is the trainer's own, and its answers are sampled once, when the
    training begins. Every so many updates the policy answers the same prompts, and `eval_win_rate`,
    `eval_win_rate_low`, `eval_win_rate_high`, `eval_win_rate_length_controlled`, `eval_kl` and `eval_completion_length`
    are logged. Answers go to `output_dir/win_rate/step-<global step>`, see [`WinRate.save`]. Samples come from
    transformers, even where the trainer's come from vLLM. The callback changes nothing in the run, nor its random
    numbers.

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
            `response_length`, `temperature`, `stop_token_id`, `batch_size`, `seed` and `chat_template_kwargs`, see
            [`AnswerSampler`]. Defaults to what a [`FineGrainedPPOTrainer`] evaluates with, or to the length, the
            temperature and the arguments of the chat template that GRPO samples with.

    Raises:
        `ValueError`: if the models are sharded over processes (FSDP, DeepSpeed ZeRO-3), and for bad arguments.
    """

    def __init__(
        self,
        trainer: Trainer,
        judge: Judge,
        prompts: "Dataset | IterableDataset | list[Prompt]",
        *,
        every: int = 1,
        reference: PreTrainedModel | Sequence[str] | None = None,
        level: float = 0.95,
        resamples: int = 2000,
        **sampling: Any,
    ):
        from ..ppo.trainer import FineGrainedPPOTrainer

        check_least(every=(every, 1))
        check_bootstrap(level, resamples)
        _check_judge(judge)
        accelerator = trainer.accelerator
        if trainer.is_fsdp_enabled or is_fsdp2(accelerator) or is_zero3(accelerator):
            raise ValueError(
                "WinRateCallback runs on one process, but these models are sharded over all of them. Evaluate "
                "checkpoints with `evaluate_win_rate` instead."
            )
        self.trainer, self.judge, self.reference = trainer, judge, reference
        self.level, self.resamples = level, resamples
        self.is_ppo = isinstance(trainer, FineGrainedPPOTrainer)
        self.steps = every * trainer.schedule.steps_per_update if self.is_ppo else every
        of_trainer: dict[str, Any] = {}
        if self.is_ppo:
            of_trainer = {
                "response_length": trainer.args.response_length,
                "temperature": trainer._eval_temperature,
                "stop_token_id": trainer.stop_token_id,
                "batch_size": trainer.args.per_device_eval_batch_size,
                "seed": trainer.args.seed,
            }
        elif hasattr(trainer.args, "max_completion_length") and hasattr(trainer.args, "temperature"):  # such as GRPO
            of_trainer = {
                "temperature": trainer.args.temperature,
                "seed": trainer.args.seed,
                "chat_template_kwargs": getattr(trainer, "chat_template_kwargs", None),
            }
            if trainer.args.max_completion_length is not None:
                of_trainer["response_length"] = trainer.args.max_completion_length
            if getattr(trainer, "tools", None):
                logger.warning("WinRateCallback samples answers without tools, which the trainer's policy may call.")
        self.sampler = AnswerSampler(trainer.processing_class, prompts, **{**of_trainer, **sampling})

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.reference is None and not self.is_ppo:
            if state.global_step > 0:
                raise ValueError(
                    "A resumed run no longer has the model that it began with: pass it as `reference` to "
                    "WinRateCallback."
                )
            self.reference = independent_copy(model).requires_grad_(False)
        policy = _policy_of(model)
        if self.reference is not None:
            _check_models(policy, self.reference)
        with self._undisturbed(), self.trainer.accelerator.autocast():
            self._answers = _reference_answers(self.sampler, self._acting_reference(policy))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.steps != 0 or not state.is_world_process_zero:
            return
        policy = _policy_of(model)
        with self._undisturbed():
            with self.trainer.accelerator.autocast():  # the trainer's precision, but not the judge's
                answers = self.sampler(policy, "policy")
                kl = _log_ratios(self.sampler, policy, self._acting_reference(policy), answers)
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
        # Not by the trainer's own `log`: those of TRL add what was measured since the last one, and begin anew. And a
        # log cancels the one that may be due at this step.
        is_due = control.should_log
        Trainer.log(self.trainer, metrics)
        control.should_log = is_due

    def _acting_reference(self, policy: nn.Module) -> AbstractContextManager[Reference]:
        if self.reference is None:
            return self.trainer.collector.inference.use_reference()
        return _acting(self.reference, policy)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Whatever random numbers a judge draws, they are not those of the training."""
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
