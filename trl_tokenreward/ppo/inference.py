"""Passes without gradients through the models of PPO."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..nn.adapters import reference_adapter
from ..nn.sharding import unsharded
from ..nn.unpadding import groups_by_length
from .config import FineGrainedPPOConfig
from .forward import completion_logps, completion_values
from .models import PPOModels
from .prompts import Prompts, join
from .rollout import Completions
from .value_head import ValueHead


class Inference:
    """Runs the policy, reference and value models on completions, without gradients.

    Args:
        models ([`~ppo.models.PPOModels`]):
            The models.
        args ([`FineGrainedPPOConfig`]):
            Temperature and batch size.
        accelerator (`Accelerator`):
            Mixed precision, and how models are sharded.
        trained (`Callable[[], nn.Module]`):
            The module that holds policy and value model.
        wrapped (`Callable[[], nn.Module]`):
            The same in the wrapper of FSDP or DeepSpeed, which it gets when training starts.
    """

    def __init__(
        self,
        models: PPOModels,
        args: FineGrainedPPOConfig,
        accelerator: Accelerator,
        trained: Callable[[], nn.Module],
        wrapped: Callable[[], nn.Module],
    ):
        self.models, self.args, self.accelerator = models, args, accelerator
        self._trained, self._wrapped = trained, wrapped

    @contextmanager
    def use(self, model: nn.Module) -> Iterator[nn.Module]:
        """A model ready for passes without gradients: in evaluation mode, in the trainer's precision, with whole
        weights on this process."""
        trained = self._trained()
        training = trained.training
        is_trained = model is self.models.policy or model is self.models.value_model
        trained.eval()
        held = model.policy if isinstance(model, ValueHead) else model  # whose layers run
        try:
            root = self._wrapped() if is_trained else model
            with torch.no_grad(), self.accelerator.autocast(), unsharded(held, root, self.accelerator):
                yield model
        finally:
            trained.train(training)

    @contextmanager
    def use_reference(self) -> Iterator[nn.Module]:
        """The reference policy, ready for passes without gradients."""
        models = self.models
        if models.ref_model is not None:
            with self.use(models.ref_model) as model:
                yield model
            return
        with self.use(models.policy) as policy:
            with reference_adapter(policy, models.trained_adapter, models.ref_adapter):
                yield policy

    def logps(self, policy: nn.Module, prompts: Prompts, completions: Completions) -> Tensor:
        """Log-probabilities, (B, T), that a policy in [`~Inference.use`] gives to completions."""
        input_ids, attention_mask = join(prompts, completions.ids, completions.mask)
        length, logps = completions.ids.shape[1], torch.zeros(completions.mask.shape, device=input_ids.device)
        for group in self._groups(attention_mask):
            batch = input_ids[group], attention_mask[group], length
            logps[group] = completion_logps(policy, *batch, self.args.temperature)
        return logps

    def policy_logps(self, prompts: Prompts, completions: Completions) -> Tensor:
        """Log-probabilities, (B, T), of the policy as it is now."""
        with self.use(self.models.policy) as policy:
            return self.logps(policy, prompts, completions)

    def ref_logps(self, prompts: Prompts, completions: Completions) -> Tensor:
        """Log-probabilities, (B, T), of the reference policy."""
        with self.use_reference() as reference:
            return self.logps(reference, prompts, completions)

    def values(self, prompts: Prompts, completions: Completions) -> tuple[Tensor, Tensor]:
        """Values of the states before each token, (B, T), and of the final states, (B,)."""
        input_ids, attention_mask = join(prompts, completions.ids, completions.mask)
        length = completions.ids.shape[1]
        values = torch.zeros(completions.mask.shape, device=input_ids.device)
        final_values = torch.zeros(len(input_ids), device=input_ids.device)
        with self.use(self.models.value_model) as value_model:
            for group in self._groups(attention_mask):
                batch = input_ids[group], attention_mask[group], length
                values[group], final_values[group] = completion_values(value_model, *batch)
        return values, final_values

    def _groups(self, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return groups_by_length(attention_mask.sum(1), self.args.local_rollout_forward_batch_size)
