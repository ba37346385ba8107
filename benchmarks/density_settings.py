"""Settings of the density dial and the types of its results, for `density.py` and `density_report.py`."""

from typing import Any, NamedTuple

import numpy as np


UPDATES, EVALUATE_EVERY = 40, 5
BATCH_SIZE = 64
RESPONSE_LENGTH = 32
VOCABULARY, HIDDEN_SIZE, LAYERS, MAX_LENGTH = 4096, 128, 2, 128
TUNING_SEEDS, SEEDS = (101,), (1, 2, 3, 4, 5)
# The settings that tuning tries. TRL's PPO has no factor on the score, so its coefficients are five times ours for the
# same weight of the KL penalty. Nothing else limits its length, so it is tuned with larger coefficients too.
LEARNING_RATES, KL_COEFS, LAMS = (2e-4, 3e-4), (0.025, 0.05, 0.1), (0.95, 0.7)
TRL_KL_COEFS = (*KL_COEFS, 0.2, 0.4, 0.8)
REWARD_SCALE = 0.2
# Tuning succeeds with the highest gold win rate at no more KL than this, and at a length near the
# people's.
MAX_KL, MAX_LENGTH_ERROR = 8.0, 0.2

# One reward model for all but the first, which has one trained on whole sequences alone, as TRL's users have. How token
# scores become rewards is the package's default; the arms with a sequence score have its scale and its hold on the
# length.
HELD = {"reward_scale": REWARD_SCALE, "hold_length": True}
TOKENS = {"reward_signal": "token_scores"}
ARMS: dict[str, dict[str, Any]] = {
    "TRL": {},
    "terminal": {**HELD, "reward_signal": "sequence_score", "reward_density": "sequence"},
    "potential": {**HELD, "reward_density": "potential"},
    "sentence": {**TOKENS, "reward_density": "sentence"},
    "token": {**TOKENS, "reward_density": "token"},
    "token + sequence": {**TOKENS, "reward_density": "token", "sequence_score_coef": 0.5},
}
# An arm of `implicit_density.py` alone: the option `reward_model` names the folder of a model trained with DPO.
IMPLICIT_ARMS: dict[str, dict[str, Any]] = {"implicit": {}}
# The token arm without one of its defaults, each on the first seeds; `reward_model` names another reward model.
ABLATIONS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "scores as log-odds": {"token_score_transform": "none"},
    "no bound on a score": {"reward_clip": 1e9},
    "not centred": {"center_rewards": False},
    "length not held": {"hold_length": False},
    "lambda of .95": {"lam": 0.95},
    "KL target of 3 nats": {"kl_target": 3.0},
    "unchanged tokens pulled to 0, log-odds": {"reward_model": "reward_model_zero", "token_score_transform": "none"},
}
ABLATION_SEEDS = SEEDS[:1]


class Job(NamedTuple):
    """One PPO run."""

    arm: str
    learning_rate: float
    kl_coef: float
    seed: int
    updates: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        options = "".join(f"-{name}={value}" for name, value in sorted(self.options.items()))
        name = f"{self.arm}-lr{self.learning_rate:g}-kl{self.kl_coef:g}-{self.updates}-seed{self.seed}{options}"
        return name.replace(" ", "_")


class Final(NamedTuple):
    """The final figures of a run: the mean of its last two examinations."""

    win_rate: float
    length_controlled: float
    kl: float
    length: float


def final(result: dict[str, Any]) -> Final:
    return Final(*(float(np.mean([point[name] for point in result["curve"][-2:]])) for name in Final._fields))


def allowed(end: Final, human_length: float) -> bool:
    return end.kl <= MAX_KL and abs(end.length / human_length - 1) <= MAX_LENGTH_ERROR
