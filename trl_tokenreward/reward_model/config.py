"""Configuration of [`TokenRewardTrainer`]."""

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import RewardConfig

from ..utils.validation import check_fields, check_share


# What `unchanged_token_weight=None` stands for.
UNCHANGED_TOKEN_WEIGHTS = {"right": 0.5, "zero": 0.1}
# The learning rate of the heads with `head_learning_rate=None`, unless `learning_rate` is higher.
HEAD_LEARNING_RATE = 3e-3


@dataclass
class TokenRewardConfig(RewardConfig):
    r"""
    Configuration class for the [`TokenRewardTrainer`].

    This class includes only the parameters that are specific to training on tokens. The others are those of
    [`~trl.RewardConfig`] and [`~transformers.TrainingArguments`], with the same defaults. The loss is

    $$ w_\text{sequence} L_\text{sequence} + w_\text{token} (L_\text{token} + w_\text{unchanged} L_\text{unchanged}) $$

    Using [`~transformers.HfArgumentParser`] we can turn this class into
    [argparse](https://docs.python.org/3/library/argparse#module-argparse) arguments that can be specified on the
    command line.

    Parameters:
        > Parameters that control the data preprocessing

        max_edit_ratio (`float`, *optional*):
            Largest share of edited words among the words of both completions, with punctuation marks counted as words;
            of tokens in rows that have only token ids. Rows above it are dropped and counted. If `None`, no row is
            dropped for its edit.

        > Parameters that control the training

        sequence_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the sequence loss, which is [`~trl.RewardTrainer`]'s with `margin` and
            `center_rewards_coefficient`.
        token_loss_weight (`float`, *optional*, defaults to `2.0`):
            Weight of what trains the token scores. With 0 the token head is not trained. The sequence loss is the
            easier one: with the same weight it takes most of what a short training at a low rate can learn.
        token_loss (`str`, *optional*, defaults to `"classification"`):
            Loss of the edited tokens:

            - `"classification"`: tells each edited-in token from each edited-out one
              ([`~reward_model.losses.edit_classification_loss`]). Every edited token gets its own gradient and a score
              of 0 means undecided, which is what dense rewards need;
            - `"ranking"`: ranks the edited tokens of a pair as a whole ([`~reward_model.losses.edit_ranking_loss`]),
              the choice of [Xu et al.](https://huggingface.co/papers/2406.02756).
        edit_aggregation (`str`, *optional*):
            How `token_loss="ranking"` makes one number of the edited tokens of a side, `"mean"` or `"sum"`. If `None`,
            it is `"mean"`. An error with another `token_loss`.
        unchanged_token_target (`str`, *optional*, defaults to `"right"`):
            What the completion tokens that no edit touched learn:

            - `"right"`: that they are right, by cross-entropy, as those edited in
              ([`~reward_model.losses.unchanged_classification_loss`]). Low scores then find wrong tokens better, and a
              score is the log-odds that an annotator would leave the token;
            - `"zero"`: a score of 0, by its square ([`~reward_model.losses.unchanged_score_penalty`]). A score then
              says only by how much a token is better or worse than one that nobody would touch.
        unchanged_token_weight (`float`, *optional*):
            Weight of what unchanged tokens learn, relative to the token loss. 0 ignores them: nothing then holds their
            scores, and summed over a response they drown those of the tokens that matter. If `None`, .5 with the target
            `"right"`, and .1 with `"zero"`: there, a score of 3 costs .9, a third of what the classification loss
            charges an edited token for being wrong by as much (3.05), so that an edit always outweighs it.
        use_anchors (`bool`, *optional*, defaults to `False`):
            If `True`, the anchor of an edit that leaves no token on a side counts as an edited token of that side: the
            token after an omission as wrong, the token after a deletion as right. If `False` it counts as unchanged.
        head_learning_rate (`float`, *optional*):
            Peak learning rate of the two heads, which follows the schedule of `learning_rate`. `learning_rate` is then
            the rate of all other parameters. The heads have no weight decay. `None` selects 3e-3, or `learning_rate` if
            that is higher: at the rate of a pretrained backbone a new token head learns nothing in an epoch. It selects
            `learning_rate` if the token head is trained already, or if `token_loss_weight` is 0.
    """

    # Parameters that control the data preprocessing
    max_edit_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Largest share of edited words among the words of both completions (of tokens, if rows have only "
            "token ids). Rows above it are dropped and counted. If `None`, no row is dropped for its edit."
        },
    )

    # Parameters that control the training
    sequence_loss_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the sequence loss, which is `RewardTrainer`'s with `margin` and "
            "`center_rewards_coefficient`."
        },
    )
    token_loss_weight: float = field(
        default=2.0,
        metadata={"help": "Weight of what trains the token scores. With 0 the token head is not trained."},
    )
    token_loss: Literal["classification", "ranking"] = field(
        default="classification",
        metadata={
            "help": "Loss of the edited tokens: 'classification' tells each edited-in token from each edited-out one; "
            "'ranking' ranks the edited tokens of a pair as a whole, the choice of "
            "https://huggingface.co/papers/2406.02756."
        },
    )
    edit_aggregation: Literal["mean", "sum"] | None = field(
        default=None,
        metadata={
            "help": "How `token_loss='ranking'` makes one number of the edited tokens of a side, 'mean' or 'sum'. If "
            "`None`, it is 'mean'. An error with another `token_loss`."
        },
    )
    unchanged_token_target: Literal["right", "zero"] = field(
        default="right",
        metadata={
            "help": "What completion tokens that no edit touched learn: 'right': that they are right, as those edited "
            "in; 'zero': a score of 0."
        },
    )
    unchanged_token_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of what unchanged tokens learn, relative to the token loss. 0 ignores them. If `None`, .5 "
            "with the target 'right' and .1 with 'zero'."
        },
    )
    use_anchors: bool = field(
        default=False,
        metadata={
            "help": "Whether the anchor of an edit that leaves no token on a side counts as an edited token of that "
            "side. If `False` it counts as unchanged."
        },
    )
    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the two heads; it follows the schedule of `learning_rate`. If `None`, 3e-3, "
            "or `learning_rate` if that is higher."
        },
    )

    def __post_init__(self):
        check_fields(self)
        super().__post_init__()
        check_share(max_edit_ratio=self.max_edit_ratio)
        optional = ("unchanged_token_weight", "head_learning_rate")
        for name in ("sequence_loss_weight", "token_loss_weight", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` must be a finite number that is not negative, but is {value}.")
        if self.token_loss not in ("classification", "ranking"):
            raise ValueError(f"`token_loss` must be 'classification' or 'ranking', not {self.token_loss!r}.")
        if self.unchanged_token_target not in ("right", "zero"):
            raise ValueError(
                f"`unchanged_token_target` must be 'right' or 'zero', not {self.unchanged_token_target!r}."
            )
        if self.edit_aggregation not in (None, "mean", "sum"):
            raise ValueError(f"`edit_aggregation` must be 'mean' or 'sum', not {self.edit_aggregation!r}.")
        self._check_effects()

    def _check_effects(self) -> None:
        """Raises an error for settings that have no effect, because they are mistakes."""
        if self.sequence_loss_weight == 0 and self.token_loss_weight == 0:
            raise ValueError("`sequence_loss_weight` and `token_loss_weight` are both 0: there is nothing to train on.")
        if self.sequence_loss_weight == 0 and self.center_rewards_coefficient is not None:
            raise ValueError(
                "`center_rewards_coefficient` is part of the sequence loss and has no effect with "
                "`sequence_loss_weight=0`."
            )
        if self.token_loss_weight == 0:
            for name in (
                "token_loss",
                "edit_aggregation",
                "unchanged_token_target",
                "unchanged_token_weight",
                "use_anchors",
            ):
                if getattr(self, name) != getattr(TokenRewardConfig, name):
                    raise ValueError(
                        f"`{name}` is part of the token loss and has no effect with `token_loss_weight=0`."
                    )
        if self.unchanged_token_weight == 0 and self.unchanged_token_target != "right":
            raise ValueError("`unchanged_token_target` has no effect with `unchanged_token_weight=0`.")
        if self.edit_aggregation is not None and self.token_loss != "ranking":
            raise ValueError(
                f"`edit_aggregation` has no effect with `token_loss={self.token_loss!r}`, only with 'ranking'."
            )
