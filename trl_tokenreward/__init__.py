"""PPO with dense, per-token rewards learned from minimal edits, on the Hugging Face stack.

Names load on first use, so `import trl_tokenreward` needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _registration


__version__ = "0.1.0"

_MODULE_OF = {
    "EditAlignment": "edits",
    "EditOperation": "edits",
    "align_edits": "edits",
    "align_ids": "edits",
    "DataCollatorForTokenReward": "data",
    "TextScores": "modeling",
    "TokenRewardModel": "modeling",
    "TokenRewardModelConfig": "model_config",
    "TokenRewardOutput": "modeling",
    "TokenRewardConfig": "reward_config",
    "TokenRewardTrainer": "reward_trainer",
    "FineGrainedPPOConfig": "ppo_config",
    "FineGrainedPPOTrainer": "ppo_trainer",
    "RewardHackingCallback": "monitoring",
    "AgreementReport": "agreement",
    "EditedAnswer": "agreement",
    "measure_agreement": "agreement",
    "Annotations": "annotation",
    "read_annotations": "annotation",
    "annotate_dataset": "annotation",
    "WinRate": "evaluation",
    "WinRateCallback": "evaluation",
    "evaluate_win_rate": "evaluation",
    "TokenRewardReport": "token_evaluation",
    "evaluate_token_rewards": "token_evaluation",
    "ScoredRow": "scoring",
    "ScoredRows": "scoring",
    "ScoredText": "scoring",
    "TokenScorer": "scoring",
    "score_dataset": "scoring",
    "read_completions": "completion_log",
    "EndpointJudge": "judges",
    "Judge": "judges",
    "RewardModelJudge": "judges",
    "ScoringJudge": "judges",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .agreement import AgreementReport, EditedAnswer, measure_agreement
    from .annotation import Annotations, annotate_dataset, read_annotations
    from .completion_log import read_completions
    from .data import DataCollatorForTokenReward
    from .edits import EditAlignment, EditOperation, align_edits, align_ids
    from .evaluation import WinRate, WinRateCallback, evaluate_win_rate
    from .judges import EndpointJudge, Judge, RewardModelJudge, ScoringJudge
    from .model_config import TokenRewardModelConfig
    from .modeling import TextScores, TokenRewardModel, TokenRewardOutput
    from .monitoring import RewardHackingCallback
    from .ppo_config import FineGrainedPPOConfig
    from .ppo_trainer import FineGrainedPPOTrainer
    from .reward_config import TokenRewardConfig
    from .reward_trainer import TokenRewardTrainer
    from .scoring import ScoredRow, ScoredRows, ScoredText, TokenScorer, score_dataset
    from .token_evaluation import TokenRewardReport, evaluate_token_rewards


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_registration.install()
