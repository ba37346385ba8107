"""Several rewards as one: their weighted sum, or the worst of an ensemble."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..nn.masked import masked_sum
from ..nn.sharding import gathered
from ..reward_model.readout import has_sequence_score, require_trained_sequence_head
from ..utils.text import distinct
from ..utils.validation import check_tokenizer
from .completion_scorer import PROMPT_COLUMNS, CompletionScorer, RawScores, worst_of
from .config import FineGrainedPPOConfig
from .reward_functions import check_call, reward_name
from .reward_settings import RewardKind


class Reward(NamedTuple):
    """One of the rewards of a run.

    Attributes:
        name (`str`):
            What logs call it; no other has that name.
        argument (`str`):
            What errors call it: the argument that it comes in, with its place where there are several.
        scorer ([`~ppo.completion_scorer.CompletionScorer`]):
            Scores completions.
        shaping (`dict[str, Any]`):
            Arguments of [`~ppo.completion_scorer.CompletionScorer.spread`].
        weight (`float`):
            Factor in the sum.
        is_extra (`bool`):
            Whether it is the sequence score that `sequence_score_coef` adds, which does not count in raw scores.
    """

    name: str
    argument: str
    scorer: CompletionScorer
    shaping: dict[str, Any]
    weight: float = 1.0
    is_extra: bool = False

    @property
    def says(self) -> str:
        """What errors call a number of it."""
        return f"{'the sequence score' if self.is_extra else 'a score'} of `{self.argument}`"


class Rewards:
    """The rewards of a run.

    Args:
        rewards (`Sequence[Reward]`):
            Each of them.
        aggregation (`str`, *optional*, defaults to `"sum"`):
            `"sum"`: each is shaped and spread by itself, and they are added up with their weights. `"min"`: at each
            token the smallest raw score counts, and is shaped and spread as that of one reward.
    """

    def __init__(self, rewards: Sequence[Reward], aggregation: str = "sum"):
        self.rewards, self.aggregation = list(rewards), aggregation
        if aggregation == "min":
            check_ensemble([reward.scorer for reward in self.rewards], "reward_model")

    @property
    def given(self) -> list[Reward]:
        """Those that the trainer was given."""
        return [reward for reward in self.rewards if not reward.is_extra]

    @property
    def kinds(self) -> list[RewardKind]:
        """What those are that the trainer was given."""
        return [reward.scorer.kind for reward in self.given]

    @property
    def readers(self) -> dict[str, nn.Module]:
        """The reward models that read the policy's own tokens, by argument."""
        return {
            reward.argument: reward.scorer.reward
            for reward in self.given
            if isinstance(reward.scorer.reward, nn.Module) and reward.scorer.reward_processing_class is None
        }

    def check_calls(self, columns: Iterable[str]) -> None:
        """Check that functions take the columns of the data set, and what else they are called with.

        Raises:
            TypeError: If one does not. The error names it.
        """
        for reward in self.given:
            if not isinstance(reward.scorer.reward, nn.Module):
                check_call(reward.scorer.reward, [name for name in columns if name not in PROMPT_COLUMNS])

    @property
    def logged(self) -> list[Reward]:
        """Those that are logged by name: all, if there are several."""
        return self.given if len(self.given) > 1 else []

    def total(self, scores: dict[str, RawScores]) -> Tensor:
        """Raw scores, (B, T), of all rewards together.

        Args:
            scores (`dict[str, RawScores]`):
                The raw scores of each, by [`Reward.says`].
        """
        if self.aggregation == "min":
            return self._worst(scores).values
        return reduce(add, [reward.weight * scores[reward.says].values for reward in self.given])

    def spread(self, scores: dict[str, RawScores], completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """Scores of the whole batch, (B, T), shaped, spread over tokens and combined."""
        batch = completion_ids, completion_mask
        if self.aggregation == "min":
            first = self.rewards[0]
            return first.scorer.spread(self._worst(scores), *batch, **first.shaping)
        return reduce(add, [r.weight * r.scorer.spread(scores[r.says], *batch, **r.shaping) for r in self.rewards])

    def _worst(self, scores: dict[str, RawScores]) -> RawScores:
        return worst_of([scores[reward.says] for reward in self.given])

    def totals(self, scores: dict[str, RawScores], completion_mask: Tensor) -> dict[str, Tensor]:
        """The raw score of each completion, (B,), from each reward that is logged, by its name."""
        return {r.name: masked_sum(scores[r.says].values, completion_mask, dim=1) for r in self.logged}

    def metrics(self, scores: dict[str, RawScores], completion_mask: Tensor) -> dict[str, float]:
        """Mean and standard deviation over completions of each reward that is logged, named as in TRL's GRPO."""
        metrics = {}
        for name, totals in self.totals(scores, completion_mask).items():
            metrics[f"rewards/{name}/mean"] = float(totals.mean())
            metrics[f"rewards/{name}/std"] = float(totals.std()) if len(totals) > 1 else 0.0
        return metrics


def as_list(given: Any) -> list[Any]:
    """The entries of a list or tuple; else what is given, alone."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def argument_of(index: int, number: int, argument: str = "reward_model") -> str:
    """What errors call one of a number of rewards."""
    return argument if number == 1 else f"{argument}[{index}]"


def make_rewards(
    given: Any,
    processing_class: PreTrainedTokenizerBase,
    reward_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    args: FineGrainedPPOConfig,
) -> Rewards:
    """The rewards that a trainer is given.

    Args:
        given (`nn.Module`, `Callable`, or a list of them):
            The trainer's `reward_model`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`] or a list of them, *optional*):
            The tokenizer of each reward model that has another.
        args ([`FineGrainedPPOConfig`]):
            The settings.

    Raises:
        ValueError, TypeError: If a reward does not give what the settings ask for. The error names its position.
    """
    entries, tokenizers = as_list(given), as_list(reward_processing_class)
    args.check_number_of_rewards(len(entries))
    if reward_processing_class is None:
        tokenizers = [None] * len(entries)
    if len(tokenizers) != len(entries):
        raise ValueError(
            f"There are {len(entries)} rewards in `reward_model`, but {len(tokenizers)} in `reward_processing_class`: "
            "pass a list with one tokenizer for each, `None` for those with the policy's and for functions."
        )
    sizes = args.local_rollout_forward_batch_size, args.find_stop_token(processing_class.eos_token_id)
    rewards = []
    for index, (reward, tokenizer) in enumerate(zip(entries, tokenizers, strict=True)):
        own, argument = args.of_reward(index), argument_of(index, len(entries))
        if tokenizer is not None:
            check_tokenizer(tokenizer, argument_of(index, len(entries), "reward_processing_class"))
        try:
            with gathered(reward):
                given = reward, processing_class, tokenizer, own.reward_signal, own.reward_density, *sizes
                scorer = CompletionScorer(*given)
            own.check_signal(scorer.signal)
        except (TypeError, ValueError) as error:
            if len(entries) == 1:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"`{argument}`: {error}") from error
        weight = 1.0 if args.reward_weights is None else float(args.reward_weights[index])
        shaping = own.with_reward_defaults(scorer.kind).shaping()
        rewards.append(Reward(reward_name(reward), argument, scorer, shaping, weight))
    names = distinct([reward.name for reward in rewards])
    rewards = [reward._replace(name=name) for reward, name in zip(rewards, names, strict=True)]
    if args.sequence_score_coef > 0:
        rewards.append(_sequence_score(rewards, tokenizers[0], args, sizes))
    return Rewards(rewards, args.reward_aggregation)


def _sequence_score(
    rewards: list[Reward], tokenizer: PreTrainedTokenizerBase | None, args: FineGrainedPPOConfig, sizes: tuple
) -> Reward:
    """The sequence score that `sequence_score_coef` adds to the token scores of the one reward model."""
    first = rewards[0]
    reward = first.scorer.reward
    if len(rewards) > 1:
        raise ValueError(
            "`sequence_score_coef` is for one reward model. Of several, list the model twice, the second time with "
            "`{'reward_signal': 'sequence_score'}` in `reward_settings`, and weight it in `reward_weights`."
        )
    if not isinstance(reward, nn.Module) or first.scorer.signal != "token_scores" or not has_sequence_score(reward):
        raise ValueError(
            "`sequence_score_coef` adds the sequence score of a reward model to its token scores: `reward_model` must "
            "be a TokenRewardModel, and `reward_signal` 'token_scores' or unset."
        )
    require_trained_sequence_head(reward, "set `sequence_score_coef=0`")
    scorer = CompletionScorer(reward, first.scorer.processing_class, tokenizer, "sequence_score", "sequence", *sizes)
    shaping = {**first.shaping, "log_sigmoid": False}  # a sequence score is not the log-odds of a token
    weight = first.weight * args.sequence_score_coef
    return Reward("sequence_score", first.argument, scorer, shaping, weight, is_extra=True)


def check_ensemble(scorers: Sequence[CompletionScorer | None], argument: str) -> None:
    """Check that the smallest of some rewards' scores means something.

    Args:
        scorers (`Sequence[CompletionScorer | None]`):
            Those of the rewards, `None` for what is no reward model that this package reads.
        argument (`str`):
            The argument that they come in, for the error.

    Raises:
        ValueError: If one is no reward model, or they are not all of one kind.
    """
    first = scorers[0]
    for index, scorer in enumerate(scorers):
        which = f"`reward_aggregation='min'`: `{argument}[{index}]`"
        if scorer is None or not isinstance(scorer.reward, nn.Module):
            raise ValueError(f"{which} is no reward model that scores tokens. Use 'sum'.")
        if scorer.density == "potential":
            raise ValueError(f"{which} gives differences of potentials, whose smallest is none. Use 'sum'.")
        assert first is not None
        if (scorer.signal, scorer.kind) != (first.signal, first.kind):
            raise ValueError(
                f"{which} gives another kind of scores than `{argument}[0]`, so the smaller of the two means nothing. "
                "Use 'sum'."
            )
