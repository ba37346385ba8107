"""Reading and writing the policy and the value model, their optimizer and their scheduler."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..nn.sharding import distributed_like, full_optimizer_state_dict, load_optimizer_state_dict
from .forward import PolicyAndValue
from .value_head import ValueHead


VALUE_MODEL_FOLDER = "value_model"


class SavedModel(NamedTuple):
    """A trained model as it is saved: its name in [`~ppo.forward.PolicyAndValue`], and its folder."""

    name: str
    model: nn.Module
    folder: str


def saved_models(models: PolicyAndValue, directory: str) -> Iterator[SavedModel]:
    """The policy, which lies in the directory itself, and the value model."""
    yield SavedModel("policy", models.policy, directory)
    yield SavedModel("value_model", models.value_model, os.path.join(directory, VALUE_MODEL_FOLDER))


def save_models(models: PolicyAndValue, directory: str, state_dict: dict[str, Tensor] | None = None) -> None:
    """Save both models as ordinary checkpoints.

    Args:
        models ([`~ppo.forward.PolicyAndValue`]):
            The models.
        directory (`str`):
            The folder.
        state_dict (`dict[str, Tensor]`, *optional*):
            Whole weights of both, where the models' own are sharded.
    """
    for name, model, folder in saved_models(models, directory):
        own = None
        if state_dict is not None:
            own = {k.removeprefix(f"{name}."): v for k, v in state_dict.items() if k.startswith(f"{name}.")}
        model.save_pretrained(folder, state_dict=own)


def load_models(models: PolicyAndValue, checkpoint: str) -> None:
    """Load both models' weights, or their adapters', from a checkpoint.

    Raises:
        ValueError: If the checkpoint lacks one of them.
    """
    for name, model, folder in saved_models(models, checkpoint):
        if not os.path.isdir(folder):
            raise ValueError(f"The checkpoint {checkpoint} has no folder {folder} with the {name}.")
        if isinstance(model, ValueHead):
            model.load_state_dict(distributed_like(ValueHead.read(folder), model))
        elif is_peft_model(model):
            from peft import load_peft_weights, set_peft_model_state_dict

            for adapter in model.peft_config:
                path = folder if adapter == "default" else os.path.join(folder, adapter)
                weights = distributed_like(load_peft_weights(path, device="cpu"), model)
                set_peft_model_state_dict(model, weights, adapter_name=adapter)
        else:
            saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
            model.load_state_dict(distributed_like(saved.state_dict(), model))


def save_sharded_optimizer(
    directory: str, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, should_save: bool
) -> None:
    """Save what Trainer saves without FSDP, so that any number of processes can resume, with FSDP or without."""
    state = full_optimizer_state_dict(model, optimizer)
    if should_save:
        torch.save(state, os.path.join(directory, OPTIMIZER_NAME))
        torch.save(scheduler.state_dict(), os.path.join(directory, SCHEDULER_NAME))


def load_sharded_optimizer(checkpoint: str, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Load the optimizer and the scheduler of a checkpoint."""
    files = [os.path.join(checkpoint, name) for name in (OPTIMIZER_NAME, SCHEDULER_NAME)]
    optimizer_state, scheduler_state = (torch.load(f, map_location="cpu", weights_only=True) for f in files)
    load_optimizer_state_dict(model, optimizer, optimizer_state)
    scheduler.load_state_dict(scheduler_state)
