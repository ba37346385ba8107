"""Signs of reward hacking: the reward rises while length, repetition or KL run away."""

from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback

from ..utils.validation import check_least


logger = get_logger(__name__)

# What PPO calls the reward, and what GRPO does.
_REWARDS = ("objective/raw_scores", "reward")


def hacking_signs(
    history: list[dict[str, Any]],
    window: int = 3,
    max_length_factor: float = 1.5,
    max_repetition: float = 0.2,
    max_kl_per_token: float = 1.0,
) -> dict[str, str]:
    """Signs of reward hacking in the logs of a PPO or GRPO run (compare Gao, Schulman and Hilton, 2023).

    The last `window` logs are compared with the first ones, when the policy had hardly moved. There are signs only if
    the mean raw score has risen since. What a run does not log, such as the KL of GRPO with `beta=0`, shows no sign.

    Args:
        history (`list[dict[str, Any]]`):
            `trainer.state.log_history`.
        window (`int`, *optional*, defaults to `3`):
            How many logs are averaged. There are no signs before there are as many after the first.
        max_length_factor (`float`, *optional*, defaults to `1.5`):
            By what factor the mean length may grow, or shrink.
        max_repetition (`float`, *optional*, defaults to `0.2`):
            By how much the share of repeated trigrams may grow.
        max_kl_per_token (`float`, *optional*, defaults to `1.0`):
            How many nats of KL a completion token may cost: at one nat, the reference finds the policy's tokens e times
            less probable than the policy does, on average.

    Raises:
        ValueError: If an argument is out of range.

    Returns:
        `dict[str, str]`: For each of `"length"`, `"repetition"` and `"kl"` that has run away, what was seen.
    """
    check_least(
        window=(window, 1),
        max_length_factor=(max_length_factor, 0),
        max_repetition=(max_repetition, 0),
        max_kl_per_token=(max_kl_per_token, 0),
    )
    if not max_length_factor > 1:
        raise ValueError(f"`max_length_factor` must be above 1, got {max_length_factor}.")
    # GRPO logs `None` where no reward function had an opinion.
    history = [{name: value for name, value in entry.items() if value is not None} for entry in history]
    name = next((name for name in _REWARDS if any(name in entry for entry in history)), None)
    logs = [entry for entry in history if name in entry]
    if name is None or len(logs) <= window:
        return {}
    compared = [logs[0], *logs[-window:]]

    def is_logged(name: str) -> bool:
        return all(name in entry for entry in compared)

    def then_and_now(name: str) -> tuple[float, float]:
        return logs[0][name], sum(entry[name] for entry in logs[-window:]) / window

    reward, new_reward = then_and_now(name)
    if not new_reward > reward:
        return {}
    risen = f"the reward has risen from {reward:.3g} to {new_reward:.3g}"
    signs = {}
    length, new_length = then_and_now("completions/mean_length")
    if not 1 / max_length_factor <= new_length / length <= max_length_factor:
        signs["length"] = f"{risen} while the mean length went from {length:.1f} to {new_length:.1f} tokens"
    if is_logged("completions/repetition"):
        repetition, new_repetition = then_and_now("completions/repetition")
        if new_repetition - repetition > max_repetition:
            signs["repetition"] = f"{risen} while repeated trigrams went from {repetition:.0%} to {new_repetition:.0%}"
    kl_per_token = 0.0
    if is_logged("objective/kl"):  # PPO's, of a completion
        kl_per_token = then_and_now("objective/kl")[1] / new_length
    elif is_logged("kl"):  # GRPO's, of a token
        kl_per_token = then_and_now("kl")[1]
    if kl_per_token > max_kl_per_token:
        signs["kl"] = f"{risen} while the KL to the reference came to {kl_per_token:.2f} nats a token"
    return signs


_REMEDIES = {
    "length": "token scores add up: try `center_rewards`, `hold_length` or a higher `kl_coef` (`beta` in GRPO)",
    "repetition": "try a lower `reward_clip` or `reward_scale`, or a higher `kl_coef` (`beta` in GRPO)",
    "kl": "try a higher `kl_coef`, or `kl_target` to have it adapted (in GRPO, a higher `beta`)",
}


class RewardHackingCallback(TrainerCallback):
    """Warns, once for each sign, when the logs of a [`FineGrainedPPOTrainer`] or a [`FineGrainedGRPOTrainer`] look like
    reward hacking.

    The trainers have one of these unless they are given another: `callbacks=[RewardHackingCallback(stop=True)]`.

    Args:
        stop (`bool`, *optional*, defaults to `False`):
            Whether to end the training at the first sign.
        thresholds:
            Keyword arguments of [`hacking_signs`].

    Attributes:
        signs (`dict[str, str]`):
            What was seen so far.
    """

    def __init__(self, stop: bool = False, **thresholds: Any):
        hacking_signs([], **thresholds)  # a name that it does not know is to be found out now
        self.stop, self.thresholds = stop, thresholds
        self.signs: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.signs = {}

    def on_log(self, args, state, control, **kwargs):
        for name, seen in hacking_signs(state.log_history, **self.thresholds).items():
            if name not in self.signs:
                self.signs[name] = f"At step {state.global_step} {seen}"
                logger.warning(f"This looks like reward hacking. {self.signs[name]}; {_REMEDIES[name]}.")
        if self.signs and self.stop:
            control.should_training_stop = True
        return control
