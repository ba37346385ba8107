"""PPO with dense, per-token rewards learned from minimal edits, on the Hugging Face stack.

Names load on first use, so `import trl_tokenreward` needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _registration


__version__ = "0.1.0.dev0"

_MODULE_OF = {
    "EditAlignment": "edits.alignment",
    "EditOperation": "edits.alignment",
    "align_edits": "edits.alignment",
    "align_ids": "edits.alignment",
    "DataCollatorForTokenReward": "data.collator",
    "ImplicitReward": "reward_model.implicit",
    "TextScores": "reward_model.text_scores",
    "TokenRewardModel": "reward_model.modeling",
    "TokenRewardModelConfig": "reward_model.configuration",
    "TokenRewardOutput": "reward_model.modeling",
    "TokenRewardConfig": "reward_model.config",
    "TokenRewardTrainer": "reward_model.trainer",
    "FineGrainedPPOConfig": "ppo.config",
    "FineGrainedPPOTrainer": "ppo.trainer",
    "FineGrainedGRPOConfig": "grpo.config",
    "FineGrainedGRPOTrainer": "grpo.trainer",
    "RewardHackingCallback": "ppo.reward_hacking",
    "AgreementReport": "annotation.agreement",
    "EditedAnswer": "annotation.agreement",
    "measure_agreement": "annotation.agreement",
    "Annotations": "annotation.results",
    "read_annotations": "annotation.results",
    "annotate_dataset": "annotation.annotate",
    "WinRate": "evaluation.win_rate",
    "WinRateCallback": "evaluation.win_rate",
    "evaluate_win_rate": "evaluation.win_rate",
    "TokenRewardReport": "reward_model.evaluation",
    "evaluate_token_rewards": "reward_model.evaluation",
    "StepReport": "reward_model.step_evaluation",
    "evaluate_steps": "reward_model.step_evaluation",
    "ScoredRow": "views.scored_text",
    "ScoredRows": "views.scored_rows",
    "ScoredText": "views.scored_text",
    "TokenScorer": "reward_model.scoring",
    "export_scores": "reward_model.export",
    "score_dataset": "reward_model.scoring",
    "read_completions": "ppo.completion_log",
    "EditsPending": "rounds.run",
    "Round": "rounds.run",
    "RoundConfig": "rounds.settings",
    "run_round": "rounds.run",
    "run_rounds": "rounds.run",
    "EndpointJudge": "evaluation.judges",
    "Judge": "evaluation.judges",
    "RewardModelJudge": "evaluation.judges",
    "ScoringJudge": "evaluation.judges",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .annotation.agreement import AgreementReport, EditedAnswer, measure_agreement
    from .annotation.annotate import annotate_dataset
    from .annotation.results import Annotations, read_annotations
    from .data.collator import DataCollatorForTokenReward
    from .edits.alignment import EditAlignment, EditOperation, align_edits, align_ids
    from .evaluation.judges import EndpointJudge, Judge, RewardModelJudge, ScoringJudge
    from .evaluation.win_rate import WinRate, WinRateCallback, evaluate_win_rate
    from .grpo.config import FineGrainedGRPOConfig
    from .grpo.trainer import FineGrainedGRPOTrainer
    from .ppo.completion_log import read_completions
    from .ppo.config import FineGrainedPPOConfig
    from .ppo.reward_hacking import RewardHackingCallback
    from .ppo.trainer import FineGrainedPPOTrainer
    from .reward_model.config import TokenRewardConfig
    from .reward_model.configuration import TokenRewardModelConfig
    from .reward_model.evaluation import TokenRewardReport, evaluate_token_rewards
    from .reward_model.export import export_scores
    from .reward_model.implicit import ImplicitReward
    from .reward_model.modeling import TokenRewardModel, TokenRewardOutput
    from .reward_model.scoring import TokenScorer, score_dataset
    from .reward_model.step_evaluation import StepReport, evaluate_steps
    from .reward_model.text_scores import TextScores
    from .reward_model.trainer import TokenRewardTrainer
    from .rounds.run import EditsPending, Round, run_round, run_rounds
    from .rounds.settings import RoundConfig
    from .views.scored_rows import ScoredRows
    from .views.scored_text import ScoredRow, ScoredText


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_registration.install()
