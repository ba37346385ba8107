"""Settings of rounds."""

import copy
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from ..ppo.config import FineGrainedPPOConfig
from ..reward_model.config import TokenRewardConfig
from ..utils.validation import check_choice, check_fields, check_least_if_given


# What the rounds decide themselves, with the values that say nothing.
_SET_BY_ROUNDS: dict[str, tuple[Any, ...]] = {
    "output_dir": (None, "trainer_output"),
    "resume_from_checkpoint": (None,),
    "push_to_hub": (False,),
}
# Where a run writes to and what it shows has no effect on what it learns.
_NO_SETTINGS = (
    "output_dir",
    "run_name",
    "logging_dir",
    "disable_tqdm",
    "report_to",
    "hub_token",
)


@dataclass
class RoundConfig:
    """
    Settings of [`run_rounds`].

    Parameters:
        reward ([`TokenRewardConfig`]):
            How the reward model trains in each round. The seed of round `n` is `seed + n - 1`.
        ppo ([`FineGrainedPPOConfig`]):
            How the policy trains in each round: `total_episodes` or `max_steps` are those of one round. The policy's
            answers are sampled with its `response_length`, `temperature` and stop token, `per_device_eval_batch_size`
            at a time, at the seed `seed + n - 1`. `max_prompt_length` drops longer prompts from both.
        num_prompts (`int`, *optional*):
            How many answers are sampled for editing in a round, to different prompts. The next round goes on where this
            one stopped. If `None`, one answer to every prompt.
        replay (`float`, *optional*, defaults to `1.0`):
            The share of the earlier pairs, those that were given and the edits of earlier rounds, on which the reward
            model trains again, along with the new edits.
        reference (`str`, *optional*, defaults to `"first"`):
            The reference of PPO's KL penalty: the `"first"` policy in every round, so that the KL of all rounds
            together is held, or the policy with which the round begins (`"current"`).
        edit_options (`dict`, *optional*):
            For an editor that is no person: `criteria`, `template`, `checks` and `retries` of
            [`~editing.edit_dataset.edit_dataset`]. The template's default asks to leave an answer that is right.
        model_init_kwargs (`dict`, *optional*):
            Arguments of `from_pretrained` for the policy and its reference. The default for `dtype` is `"float32"`, as
            of [`TokenRewardTrainer`]. Those of the reward model are in `reward`.

    Raises:
        ValueError: For a bad value, or a field of `reward` or `ppo` that has no effect here.
    """

    reward: TokenRewardConfig
    ppo: FineGrainedPPOConfig
    num_prompts: int | None = None
    replay: float = 1.0
    reference: Literal["first", "current"] = "first"
    edit_options: dict[str, Any] = field(default_factory=dict)
    model_init_kwargs: dict[str, Any] | None = None

    def __post_init__(self):
        check_fields(self)
        for name, kind in (("reward", TokenRewardConfig), ("ppo", FineGrainedPPOConfig)):
            config = getattr(self, name)
            if not isinstance(config, kind):
                raise TypeError(f"`{name}` must be a `{kind.__name__}`, got {type(config).__name__}.")
            for set_here, neutral in _SET_BY_ROUNDS.items():
                if getattr(config, set_here) not in neutral:
                    raise ValueError(
                        f"`{set_here}` of `{name}` has no effect on rounds, which write each round to a folder of its "
                        "own and resume by themselves: leave it unset."
                    )
            if config.save_only_model and config.save_strategy != "no":
                raise ValueError(
                    f"`save_only_model` of `{name}` leaves checkpoints that rounds cannot resume from: leave it unset, "
                    "or save none (`save_strategy='no'`)."
                )
            if config.distributed_state.num_processes > 1:
                raise ValueError("Rounds run in one process: do not launch them with several.")
        check_least_if_given(num_prompts=(self.num_prompts, 1))
        if not 0 <= self.replay <= 1:
            raise ValueError(f"`replay` is a share of the earlier pairs, from 0 to 1, not {self.replay}.")
        check_choice("reference", self.reference, ("first", "current"))
        unknown = sorted(self.edit_options.keys() - {"criteria", "template", "checks", "retries"})
        if unknown:
            raise ValueError(f"`edit_options` takes criteria, template, checks and retries, not {', '.join(unknown)}.")

    def settings(self) -> dict[str, Any]:
        """The settings as JSON-compatible values; of the two configurations those that are not the default."""
        options = dict(self.edit_options)
        if "checks" in options:
            options["checks"] = options["checks"].settings()
        own = {name: getattr(self, name) for name in ("num_prompts", "replay", "reference", "model_init_kwargs")}
        parts = {"reward": self.reward, "ppo": self.ppo}
        trained = {f"{part}.{name}": value for part, args in parts.items() for name, value in _changed(args).items()}
        return {**own, **{f"edit_options.{name}": value for name, value in options.items()}, **trained}


def _changed(args: Any) -> dict[str, Any]:
    values = args.to_dict()
    known = {f.name: f.default for f in fields(args) if f.default is not MISSING and f.name not in _NO_SETTINGS}
    return {name: values[name] for name, default in known.items() if name in values and values[name] != default}


def for_round(args: Any, number: int, output_dir: str) -> Any:
    """A copy of training arguments for one round: with its folder, and with seeds of its own."""
    args = copy.copy(args)
    args.output_dir, args.seed = output_dir, args.seed + number - 1
    if args.data_seed is not None:
        args.data_seed += number - 1
    return args
