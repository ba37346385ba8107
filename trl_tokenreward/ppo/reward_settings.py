"""How scores become rewards: settings that PPO and GRPO share."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ..utils.validation import check_choice, check_fields


# `"log_odds"`: a reward model's scores of tokens, the log-odds that an annotator leaves a token unchanged.
# `"log_ratios"`: the token scores of an `ImplicitReward`, which has a scale of its own. `"other"`: a sequence score, or
# what a function returns.
RewardKind = Literal["log_odds", "log_ratios", "other"]

# What each of several rewards may have for itself.
OF_ONE_REWARD = (
    "reward_signal",
    "reward_density",
    "token_score_transform",
    "reward_scale",
    "center_rewards",
    "reward_clip",
)


@dataclass
class RewardSettings:
    """Settings of rewards. The configurations that inherit them say what each is.

    `None` selects a default that depends on the rewards, see [`reward_defaults`].
    """

    reward_signal: Literal["token_scores", "sequence_score"] | None = field(
        default=None,
        metadata={
            "help": "What a completion's return is made of: the sum of its token scores, or its sequence score. If "
            "unset, token scores where the reward model has them."
        },
    )
    reward_density: Literal["token", "sentence", "sequence", "potential"] | None = field(
        default=None,
        metadata={
            "help": "How the return is spread over the completion, at equal total. If unset, over tokens for token "
            "scores, on the last token for a sequence score."
        },
    )
    token_score_transform: Literal["none", "log_sigmoid"] | None = field(
        default=None,
        metadata={
            "help": "'log_sigmoid' makes log-odds log-probabilities. If unset, for the token scores of a reward model "
            "alone."
        },
    )
    reward_scale: float | None = field(
        default=None,
        metadata={"help": "Factor on the scores. If unset, 0.2 for the token scores of a reward model, 1 otherwise."},
    )
    center_rewards: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to subtract the batch's mean score. If unset, for the token scores of a reward model "
            "alone."
        },
    )
    reward_clip: float | None = field(
        default=None,
        metadata={
            "help": "Bound on the size of each score. If unset, 1 for the token scores of a reward model, none "
            "otherwise."
        },
    )
    hold_length: bool | None = field(
        default=None,
        metadata={
            "help": "Whether advantages are kept from changing the mean length of completions. If unset, for the token "
            "scores of a reward model alone."
        },
    )
    target_length: float | None = field(
        default=None,
        metadata={"help": "Mean length that `hold_length` keeps, in tokens. If unset, that of the first update."},
    )
    reward_aggregation: Literal["sum", "min"] = field(
        default="sum",
        metadata={
            "help": "How several rewards become one: their weighted sum, or at each token the smallest score of an "
            "ensemble of reward models."
        },
    )
    reward_settings: list[dict] | None = field(
        default=None,
        metadata={
            "help": "For each of several rewards, a dictionary of the settings from `reward_signal` to `reward_clip` "
            "that it has for itself."
        },
    )

    def with_reward_defaults(self, kind: RewardKind) -> Self:
        """A copy in which the settings of rewards that are `None` have the values that they stand for.

        Args:
            kind (`str`):
                What the rewards are, see [`RewardKind`].
        """
        settings = copy.copy(self)
        for name, value in reward_defaults(kind).items():
            if getattr(settings, name) is None:
                setattr(settings, name, value)
        return settings

    def of_reward(self, index: int) -> Self:
        """A copy with the settings that one of the rewards has for itself.

        Args:
            index (`int`):
                Its place among the rewards.
        """
        settings = copy.copy(self)
        vars(settings).update(self.own_settings(index))
        return settings

    def own_settings(self, index: int) -> dict[str, Any]:
        """What one of the rewards has for itself: its entry of `reward_settings`, empty where it has none. The rewards
        that environments own have none."""
        given = self.reward_settings or []
        return given[index] if index < len(given) else {}

    def shaping(self) -> dict[str, Any]:
        """How token scores are shaped, of settings with their defaults: arguments of
        [`~ppo.completion_scorer.CompletionScorer.spread`]."""
        return {
            "scale": self.reward_scale,
            "center": self.center_rewards,
            "clip": self.reward_clip,
            "log_sigmoid": self.token_score_transform == "log_sigmoid",
        }

    def check_rewards(self) -> None:
        """Check the settings by themselves.

        Raises:
            ValueError: If one has a value that it may not have, or no effect.
        """
        check_choice("reward_aggregation", self.reward_aggregation, ("sum", "min"))
        self._check_shaping()
        if self.target_length is not None and self.target_length <= 0:
            raise ValueError(f"`target_length` must be positive, got {self.target_length}.")
        if self.reward_settings is not None:
            self._check_reward_settings(self.reward_settings)
        weights = getattr(self, "reward_weights", None)
        if weights is not None and not _are_finite_numbers(weights):
            raise ValueError(f"`reward_weights` must be a list of finite numbers, got {weights!r}.")
        if weights and not any(weights):
            raise ValueError("`reward_weights` are all 0, so nothing is learned: give a reward that counts its weight.")
        if self.reward_aggregation == "min":
            for name, value in (("reward_weights", weights), ("reward_settings", self.reward_settings)):
                if value is not None:
                    raise ValueError(
                        f"`{name}` does not go with `reward_aggregation='min'`, which compares scores as they are and "
                        "shapes the smallest: leave it unset."
                    )

    def check_number_of_rewards(self, number: int) -> None:
        """Check that the settings are for as many rewards as there are.

        Raises:
            ValueError: If they are not, or have no effect on so many.
        """
        if self.reward_settings is not None and len(self.reward_settings) != number:
            raise ValueError(
                f"`reward_settings` has {len(self.reward_settings)} entries, but the number of rewards is {number}."
            )
        if self.reward_aggregation == "min" and number < 2:
            raise ValueError("`reward_aggregation='min'` has no effect on one reward: pass a list of reward models.")

    def check_signal(self, signal: str | None) -> None:
        """Check that the settings of a reward can have an effect on its signal.

        Args:
            signal (`str` or `None`):
                `"token_scores"` or `"sequence_score"`; `None` where that is not known yet.

        Raises:
            ValueError: If one cannot.
        """
        if self.token_score_transform == "log_sigmoid" and signal == "sequence_score":
            raise ValueError("`token_score_transform` has no effect on a sequence score.")

    def _check_reward_settings(self, given: list[dict]) -> None:
        for index, settings in enumerate(given):
            which = f"`reward_settings[{index}]`"
            if not isinstance(settings, dict):
                raise TypeError(f"{which} must be a dictionary of settings, got {settings!r}.")
            for name in settings:
                if name not in OF_ONE_REWARD:
                    raise ValueError(f"{which} has {name!r}, which is none of {', '.join(OF_ONE_REWARD)}.")
            own = self.of_reward(index)
            try:
                check_fields(own)
                own._check_shaping()
            except (TypeError, ValueError) as error:
                raise type(error)(f"{which}: {error}") from error
        for name in OF_ONE_REWARD:
            if getattr(self, name) is not None and all(name in settings for settings in given):
                raise ValueError(f"`{name}` has no effect, since every entry of `reward_settings` has its own.")

    def _check_shaping(self) -> None:
        check_choice("reward_signal", self.reward_signal, (None, "token_scores", "sequence_score"))
        check_choice("token_score_transform", self.token_score_transform, (None, "none", "log_sigmoid"))
        if self.token_score_transform == "log_sigmoid" and self.reward_signal == "sequence_score":
            raise ValueError("`token_score_transform` has no effect on `reward_signal='sequence_score'`.")
        check_choice("reward_density", self.reward_density, (None, "token", "sentence", "sequence", "potential"))
        check_density(self.reward_signal, self.reward_density)
        if self.reward_scale is not None and (self.reward_scale == 0 or not math.isfinite(self.reward_scale)):
            raise ValueError(
                f"`reward_scale` must be a finite number and not 0, with which nothing is learned, got "
                f"{self.reward_scale}."
            )
        if self.reward_clip is not None and self.reward_clip <= 0:
            raise ValueError(f"`reward_clip` must be positive, got {self.reward_clip}.")


def reward_defaults(kind: RewardKind) -> dict[str, Any]:
    """What settings of rewards that are `None` stand for.

    Args:
        kind (`str`):
            What the rewards are, see [`RewardKind`].
    """
    scores_tokens, log_odds = kind != "other", kind == "log_odds"
    return {
        "token_score_transform": "log_sigmoid" if log_odds else "none",
        "reward_scale": 0.2 if log_odds else 1.0,
        "center_rewards": scores_tokens,
        "reward_clip": 1.0 if scores_tokens else math.inf,
        "hold_length": scores_tokens,
    }


def check_density(signal: str | None, density: str | None) -> None:
    """Check that a reward signal can be spread as asked.

    Raises:
        ValueError: If it cannot.
    """
    if signal == "token_scores" and density == "potential":
        raise ValueError("`reward_density='potential'` spreads the sequence score: leave `reward_signal` unset.")
    if signal == "sequence_score" and density in ("token", "sentence"):
        raise ValueError(
            f"`reward_density={density!r}` spreads token scores. To spread the sequence score, set "
            "`reward_density='potential'`."
        )


def _are_finite_numbers(values: Any) -> bool:
    is_list = isinstance(values, list | tuple)
    return is_list and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
