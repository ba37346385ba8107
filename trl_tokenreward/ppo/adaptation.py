"""What an update takes over from the ones before it, besides weights: the KL coefficient and the length to hold."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..nn.masked import masked_sum
from .config import FineGrainedPPOConfig
from .functional import adapted_kl_coef, mean_length
from .rollout import Rollout


FILE = "adapted.json"


@dataclass(frozen=True)
class AdaptiveState:
    """
    Args:
        kl_coef (`float`):
            Coefficient of the KL penalty.
        target_length (`float` or `None`):
            Mean length that `hold_length` keeps, in tokens. `None` before the first update, whose mean length it
            becomes.
    """

    kl_coef: float
    target_length: float | None

    @classmethod
    def start(cls, args: FineGrainedPPOConfig) -> "AdaptiveState":
        """The state before the first update."""
        return cls(args.kl_coef, args.target_length)

    def after(self, rollout: Rollout, args: FineGrainedPPOConfig) -> "AdaptiveState":
        """The state for the next update."""
        state = self
        if args.hold_length and self.target_length is None:
            state = replace(state, target_length=mean_length(rollout.completion_mask))
        if args.kl_target is not None:
            kl = float(masked_sum(rollout.kl, rollout.completion_mask, dim=1).mean())
            state = replace(state, kl_coef=adapted_kl_coef(self.kl_coef, kl, args.kl_target, least=args.kl_coef))
        return state

    def save(self, checkpoint: str) -> None:
        Path(checkpoint, FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, checkpoint: str, args: FineGrainedPPOConfig) -> "AdaptiveState":
        """The state of a checkpoint. For what the run did not adapt, the settings count, which may have changed."""
        saved, given = cls(**json.loads(Path(checkpoint, FILE).read_text())), cls.start(args)
        return cls(
            kl_coef=given.kl_coef if args.kl_target is None else max(saved.kl_coef, given.kl_coef),
            target_length=saved.target_length if given.target_length is None else given.target_length,
        )
