"""Configuration of [`FineGrainedGRPOTrainer`]."""

from dataclasses import dataclass, field, fields
from typing import Literal

from trl import GRPOConfig, GRPOTrainer

from ..ppo.reward_settings import OF_ONE_REWARD, RewardSettings
from ..utils.validation import check_choice, check_fields


# What spreads and shapes token rewards, and has no effect on one reward for each completion.
_OF_TOKEN_REWARDS = ("advantage_estimator", *(name for name in OF_ONE_REWARD if name != "reward_signal"))


@dataclass
class FineGrainedGRPOConfig(RewardSettings, GRPOConfig):
    r"""
    Configuration class for the [`FineGrainedGRPOTrainer`].

    It has every field of TRL's `GRPOConfig`, with its defaults, and the fields that are listed here. Those before
    `hold_length` are about rewards that stand at single tokens. With one reward for each completion they must be left
    as they are.

    Parameters:
        advantage_estimator (`str`, *optional*, defaults to `"process"`):
            How a group's token rewards become advantages. `"process"`: each reward less the group's mean, over its
            standard deviation; a token's advantage is the sum of those from it on (DeepSeekMath, section 4.1.3,
            [`~grpo.functional.process_advantages`]). `"leave_one_out"`: the return from a token on, less the mean
            return of the group's other completions from there on ([`~grpo.functional.leave_one_out_advantages`]).
            `scale_rewards` says what both divide by.
        reward_signal (`str`, *optional*):
            What a [`TokenRewardModel`] gives. `"token_scores"`, which `None` selects unless `reward_density` is
            `"potential"`; or `"sequence_score"`, one reward for each completion.
        reward_density (`str`, *optional*):
            Where token rewards stand, at equal total: `"token"`, at their tokens; `"sentence"`, each sentence's sum on
            its last token; `"sequence"`, their sum on the completion's last token; `"potential"`, the sequence score of
            a [`TokenRewardModel`] as differences between prefixes. `None` selects `"token"`.
        token_score_transform (`str`, *optional*):
            As in [`FineGrainedPPOConfig`]: `"log_sigmoid"` or `"none"`. `None` selects `"log_sigmoid"` for the token
            scores of a reward model, else `"none"`.
        reward_scale (`float`, *optional*):
            Factor on token rewards. `None` selects .2 for the token scores of a reward model, and 1 for a function's.
            With one reward and `scale_rewards` it matters for `reward_clip` alone.
        center_rewards (`bool`, *optional*):
            Whether to subtract the batch's mean token reward before clipping. `None` selects `True` for the token
            scores of a reward model.
        reward_clip (`float`, *optional*):
            Bound on each token reward, after scaling and centring. `None` selects 1 for the token scores of a reward
            model, else no bound.
        hold_length (`bool`, *optional*):
            Whether to keep the mean length of completions ([`~ppo.functional.hold_mean_length`]), whatever the rewards
            are. `None` selects `True` for the token scores of a reward model.
        target_length (`float`, *optional*):
            The mean length that `hold_length` keeps, in tokens. `None` selects that of the first batch.
        reward_aggregation (`str`, *optional*, defaults to `"sum"`):
            How several rewards become one, as in [`FineGrainedPPOConfig`]: `"sum"`, with TRL's `reward_weights`, or
            `"min"`, for several reward models that score tokens.
        reward_settings (`list[dict]`, *optional*):
            For each of `reward_funcs`, a dictionary of what it has for itself of the settings from `reward_signal` to
            `reward_clip`.
    """

    advantage_estimator: Literal["process", "leave_one_out"] = field(
        default="process",
        metadata={
            "help": "How a group's token rewards become advantages: 'process' (DeepSeekMath, section 4.1.3) or "
            "'leave_one_out' (the return from a token on, less that of the group's others)."
        },
    )

    @classmethod
    def from_grpo_config(cls, config: GRPOConfig) -> "FineGrainedGRPOConfig":
        """A copy of one of TRL's `GRPOConfig` in this class."""
        values = {f.name: getattr(config, f.name) for f in fields(config) if f.init}
        if values["generation_batch_size"] is not None:  # each was computed from the other
            values["steps_per_generation"] = None
        return cls(**values)

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        check_choice("advantage_estimator", self.advantage_estimator, ("process", "leave_one_out"))
        self.check_rewards()
        if self.target_length is not None and self.hold_length is False:
            raise ValueError("`target_length` has no effect with `hold_length=False`.")

    def check_token_advantages(self) -> None:
        """Check that the settings of TRL can be right with advantages of single tokens.

        Raises:
            ValueError: Where one cannot.
        """
        reasons = {
            "importance_sampling_level": (
                self.importance_sampling_level == "sequence",
                "it weights whole completions, so the credit of single tokens would be lost; use 'token'",
            ),
            "use_liger_kernel": (
                self.use_liger_kernel and hasattr(GRPOTrainer, "compute_liger_loss"),
                "its kernel takes one advantage for each completion",
            ),
            "loss_type": (
                self.loss_type == "vespo",
                "it weights a whole completion by the sign of its one advantage",
            ),
            "off_policy_mask_threshold": (
                getattr(self, "off_policy_mask_threshold", None) is not None,
                "it drops whole completions by the sign of their one advantage",
            ),
            "multi_objective_aggregation": (
                getattr(self, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize",
                "it normalises one reward for each completion; use 'sum_then_normalize'",
            ),
            "num_generations_eval": (
                self.eval_strategy != "no" and (self.num_generations_eval or self.num_generations) < 2,
                "a group needs 2 completions or more to compare",
            ),
        }
        for name, (wrong, reason) in reasons.items():
            if wrong:
                raise ValueError(f"`{name}={getattr(self, name)!r}` does not go with advantages of tokens: {reason}.")

    def check_no_token_settings(self) -> None:
        """Check that no setting of token rewards was changed, where there are none.

        Raises:
            ValueError: Where one was.
        """
        for name in _OF_TOKEN_REWARDS:
            if getattr(self, name) != getattr(FineGrainedGRPOConfig, name):
                raise ValueError(
                    f"`{name}` is about rewards of tokens and has no effect: every reward is of a whole completion."
                )
