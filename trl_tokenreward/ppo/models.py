"""The models of PPO: policy, reference, value and reward model, checked and made ready."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from accelerate.utils import is_peft_model
from torch import nn

from .._trl import disable_dropout_in_model
from ..nn.modules import check_own_forward, independent_copy, without_peft
from ..nn.sharding import copied
from ..reward_model.modeling import TokenRewardModel
from ..reward_model.readout import check_adapter, check_scorer, has_sequence_score
from .completion_scorer import RewardFunction
from .config import FineGrainedPPOConfig


class PPOModels(NamedTuple):
    """The models of a run.

    Attributes:
        policy (`nn.Module`):
            A causal language model, under PEFT or not.
        value_model (`nn.Module`):
            A model with a sequence head.
        ref_model (`nn.Module` or `None`):
            The reference policy. `None`: the policy with its adapter switched off, or with its reference adapter.
        reward_model (`nn.Module` or `Callable`):
            A reward model, or a reward function.
    """

    policy: nn.Module
    value_model: nn.Module
    ref_model: nn.Module | None
    reward_model: nn.Module | RewardFunction

    @property
    def frozen(self) -> list[nn.Module]:
        """The models that are not trained."""
        return [model for model in (self.ref_model, self.reward_model) if isinstance(model, nn.Module)]


def check_given(
    policy: nn.Module,
    ref_model: nn.Module | None,
    reward_model: nn.Module | RewardFunction | None,
    value_model: nn.Module | None,
) -> None:
    """Check the models that a user passes, before any work is done.

    Raises:
        ValueError: If the reward model is missing, two arguments are one object, or a model runs another's weights.
    """
    if reward_model is None:
        raise ValueError("`reward_model` is required: a model, or a function that scores completions.")
    if ref_model is policy:
        raise ValueError("`model` and `ref_model` are one object: pass `ref_model=None` to have it copied.")
    if value_model is not None and value_model is reward_model:
        raise ValueError("`value_model` and `reward_model` are one object: pass `value_model=None` to have it copied.")
    given = {"model": policy, "ref_model": ref_model, "reward_model": reward_model, "value_model": value_model}
    for argument, model in given.items():
        if isinstance(model, nn.Module):
            check_own_forward(model, argument)


def prepare_models(
    args: FineGrainedPPOConfig,
    policy: nn.Module,
    ref_model: nn.Module | None,
    reward_model: nn.Module | RewardFunction,
    value_model: nn.Module | None,
    peft_config: Any = None,
    shares_tokenizer: bool = True,
) -> PPOModels:
    """Make the models that are missing, wrap the policy in its adapter, and switch off dropout and unused gradients.

    Args:
        args ([`FineGrainedPPOConfig`]):
            The adapters' names, and whether gradients are checkpointed.
        policy, ref_model, reward_model, value_model:
            As the trainer takes them, see [`check_given`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter for the policy.
        shares_tokenizer (`bool`, *optional*, defaults to `True`):
            Whether the reward model reads the policy's own tokens. If not, the value model cannot be a copy of it.

    Raises:
        ValueError, TypeError: If a model is not supported. The error names the argument.
    """
    value_model = _value_model(policy, reward_model, value_model, shares_tokenizer)
    policy = _with_adapter(args, policy, ref_model, peft_config)
    for trained in (policy, value_model):
        if is_peft_model(trained) and args.gradient_checkpointing:
            trained.enable_input_require_grads()
    if ref_model is None and not is_peft_model(policy):
        ref_model = copied(policy, independent_copy)
    models = PPOModels(policy, value_model, ref_model, reward_model)
    for model in (policy, value_model, *models.frozen):
        _disable_dropout(model)
    for model in models.frozen:
        model.requires_grad_(False).eval()
    return models


def _value_model(
    policy: nn.Module,
    reward_model: nn.Module | RewardFunction,
    value_model: nn.Module | None,
    shares_tokenizer: bool,
) -> nn.Module:
    """The value model that was passed, or else a copy of the reward model, or else the policy's backbone with new
    heads."""
    if value_model is None:
        usable = isinstance(reward_model, nn.Module) and shares_tokenizer and has_sequence_score(reward_model)
        value_model = copied(reward_model if usable else policy, TokenRewardModel.from_backbone)
    check_scorer(value_model, "value_model")
    if not has_sequence_score(value_model):
        raise ValueError(
            "`value_model` has no sequence head to give values: pass a TokenRewardModel or a sequence classifier, or "
            "`None`."
        )
    base = without_peft(value_model)
    if isinstance(base, TokenRewardModel):
        # Values come from the sequence head. DDP demands a gradient for every parameter that can have one.
        base.token_score.requires_grad_(False)
    return value_model


def _with_adapter(
    args: FineGrainedPPOConfig, policy: nn.Module, ref_model: nn.Module | None, peft_config: Any
) -> nn.Module:
    """The policy, wrapped in a new adapter if one is configured, with the adapter to train active."""
    if peft_config is not None:
        from peft import get_peft_model

        if is_peft_model(policy):
            raise ValueError("`model` has an adapter already, so `peft_config` would add a second: pass one of them.")
        policy = get_peft_model(policy, peft_config)
    check_adapter(policy, "model")
    if ref_model is not None:
        check_adapter(ref_model, "ref_model")
    if args.ref_adapter_name is not None:
        _choose_adapters(args, policy, ref_model)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError("`model` has nothing to train: load its adapter with `is_trainable=True`.")
    return policy


def _choose_adapters(args: FineGrainedPPOConfig, policy: nn.Module, ref_model: nn.Module | None) -> None:
    """Activate the adapter that is trained, so that the optimizer gets its parameters."""
    if ref_model is not None or not is_peft_model(policy):
        raise ValueError("`ref_adapter_name` needs a `PeftModel` as `model` and `ref_model=None`.")
    trained = args.model_adapter_name or "default"
    for name in (trained, args.ref_adapter_name):
        if name not in policy.peft_config:
            raise ValueError(f"`model` has no adapter {name!r}; it has {sorted(policy.peft_config)}.")
    if trained == args.ref_adapter_name:
        raise ValueError(f"The adapter {trained!r} is trained, so it cannot be `ref_adapter_name` too.")
    policy.set_adapter(trained)


@contextmanager
def reference_adapter(policy: nn.Module, trained: str | None, reference: str | None) -> Iterator[None]:
    """Make a policy with an adapter the reference policy.

    Args:
        policy (`PeftModel`):
            The policy.
        trained, reference (`str`, *optional*):
            Names of the adapter that is trained and of the one that is the reference. Without a reference, all adapters
            are switched off.
    """
    if reference is None:
        with policy.disable_adapter():
            yield
        return
    policy.set_adapter(reference)
    try:
        yield
    finally:
        policy.set_adapter(trained or "default")


def _disable_dropout(model: nn.Module) -> None:
    """Switch off every dropout: modules, and the rates that attention keeps as plain numbers."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
