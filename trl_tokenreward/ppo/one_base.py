"""One frozen base under several adapters: policy, reference, value and reward model hold its weights together.

Each of them stays a tree of modules of its own, with adapters of its own, so that nothing has to be switched between
passes. What they share are the parameters of the base, which nobody trains: the same objects stand in every tree, and
follow each other to a device.
"""

import copy
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers.utils import logging

from ..nn.modules import backbone_of, independent_copy, without_peft
from ..reward_model.given_model import HEADS, with_trained_heads
from ..reward_model.implicit import ImplicitReward
from ..reward_model.modeling import TokenRewardModel


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


logger = logging.get_logger(__name__)


def value_adapter(
    policy: "PeftModel", reward_model: nn.Module | None, peft_config: "PeftConfig", share: bool
) -> "PeftModel":
    """A value model that trains an adapter and its head alone.

    Args:
        policy (`PeftModel`):
            The policy, whose base the value model is made of where there is no reward model to begin with.
        reward_model (`nn.Module`, *optional*):
            What the value model begins as: a copy of its adapter, or a new adapter on it.
        peft_config ([`~peft.PeftConfig`]):
            Of a new adapter: that of the policy.
        share (`bool`):
            Whether the frozen weights are those of the model that the value model is made of, or copies.
    """
    source = policy if reward_model is None else reward_model
    # Biases of the policy's base may be trained with its adapter.
    shared = [p for p in base_weights(source) if share and not (source is policy and p.requires_grad)]
    value_model, ids = independent_copy(source, shared), {id(p) for p in shared}
    if source is policy or not _has_own_head(value_model):
        base = value_model.unload() if is_peft_model(value_model) else value_model
        value_model = _with_new_adapter(TokenRewardModel.from_backbone(base, copy=False), peft_config)
    for module in value_model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) in ids:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
    return value_model


def _has_own_head(model: nn.Module) -> bool:
    """True if a model has an adapter with a sequence head, which are then made to train."""
    if not is_peft_model(model):
        return False
    for name in model.active_adapters:
        model.peft_config[name].inference_mode = False
        model.set_adapter(name)
    return any(parameter.requires_grad for parameter in without_peft(model).score.parameters())


def _with_new_adapter(model: TokenRewardModel, peft_config: "PeftConfig") -> "PeftModel":
    from peft import get_peft_model

    config = copy.deepcopy(peft_config)
    config.task_type = None  # of a language model
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others, such as PiSSA, would change weights that other models hold too
    _leave_out_foreign_modules(config, [name for name, _ in model.named_modules()])
    config.modules_to_save = [*dict.fromkeys([*(config.modules_to_save or ()), *HEADS])]
    return get_peft_model(model.requires_grad_(False), with_trained_heads(config, model))


def _leave_out_foreign_modules(config: "PeftConfig", names: list[str]) -> None:
    """Take out of a configuration what it says of modules that a model, with modules of these names, does not have,
    such as the policy's output embeddings."""

    def own(modules: Iterable[str]) -> list[str]:
        return [module for module in modules if any(f".{name}".endswith(f".{module}") for name in names)]

    config.modules_to_save = own(config.modules_to_save or ())
    if isinstance(getattr(config, "trainable_token_indices", None), dict):
        kept = own(config.trainable_token_indices)
        config.trainable_token_indices = {name: config.trainable_token_indices[name] for name in kept} or None
    targets = getattr(config, "target_modules", None)
    if targets is None:
        return
    if isinstance(targets, str):
        found = targets == "all-linear" or any(re.fullmatch(targets, name) for name in names)
        config.target_modules = targets if found else None
    else:
        config.target_modules = own(targets) or None
    if config.target_modules is None:
        logger.warning(
            f"The value model has none of the adapter's `target_modules`, {targets!r}: its own adapter is on the "
            "modules that PEFT adapts by default. To choose, pass a `value_model`."
        )


def base_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that are no adapter's; all of a model without one."""
    for _, module, name in _base_weights(model, model):
        yield module._parameters[name]


def share_base(policy: "PeftModel", value_model: nn.Module | None, *others: Any) -> int:
    """Put the policy's frozen weights in the place of equal ones of the same name in other models' backbones.

    Args:
        policy (`PeftModel`):
            The policy.
        value_model (`nn.Module`, *optional*):
            The other model that is trained. Weights that it trains stay its own.
        others (`nn.Module`, `Callable` or `None`):
            Models that are only read, under PEFT or not. What is no model is passed over.

    Returns:
        `int`: How many bytes are there no more.
    """
    own = {name: module._parameters[key] for name, module, key in _base_weights(policy, _backbone(policy))}
    saved = 0
    models = [[other.model, other.ref_model] if isinstance(other, ImplicitReward) else [other] for other in others]
    for model in (value_model, *chain.from_iterable(models)):
        if not isinstance(model, nn.Module):
            continue
        for name, module, key in _base_weights(model, _backbone(model)):
            theirs, ours = module._parameters[key], own.get(name)
            if model is value_model and theirs.requires_grad:
                continue
            if ours is not None and ours is not theirs and not ours.requires_grad and _are_equal(ours, theirs):
                saved += theirs.numel() * theirs.element_size()
                module._parameters[key] = ours
    if saved:
        logger.info(f"The models share their base, which saves {saved / 2**20:.0f} MiB.")
    return saved


def _backbone(model: nn.Module) -> nn.Module:
    return backbone_of(without_peft(model))


def _base_weights(model: nn.Module, root: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The parameters below `root`, a part of `model`, that are no adapter's: their names without what PEFT puts in,
    and where they stand."""
    tuner = model.base_model.prefix if is_peft_model(model) else None
    for path, module in root.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            parts = f"{path}.{name}".lstrip(".").split(".")
            of_adapter = tuner is not None and (
                "modules_to_save" in parts or any(part.startswith(tuner) for part in parts)
            )
            if parameter is not None and not of_adapter:
                yield ".".join(part for part in parts if part not in ("base_layer", "original_module")), module, name


def _are_equal(one: nn.Parameter, other: nn.Parameter) -> bool:
    same = type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
    if not same or one.device != other.device or one.is_meta or not torch.equal(one.data, other.data):
        return False
    # Of weights in 4 bits; their scales are kept beside them.
    scales = [getattr(getattr(p, "quant_state", None), "absmax", None) for p in (one, other)]
    return scales[0] is scales[1] or (None not in scales and torch.equal(*scales))
