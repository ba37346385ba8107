"""Adapters of PEFT: which kinds are known, and the model without its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from accelerate.utils import is_peft_model
from torch import nn


if TYPE_CHECKING:
    from peft import PeftConfig


def check_adapter(model: nn.Module, argument: str) -> None:
    """Raise a `ValueError` if `model` has an adapter of virtual tokens. The model under the wrapper does
    not know them, so every position would shift."""
    for config in model.peft_config.values() if is_peft_model(model) else ():
        if config.is_prompt_learning:
            raise ValueError(
                f"`{argument}` has an adapter of the type {config.peft_type.value}, which adds virtual tokens: use one "
                "that changes layers, such as LoRA."
            )


def require_something_to_train(model: nn.Module) -> None:
    """Raise a `ValueError` if every parameter of `model` is frozen, as PEFT leaves an adapter that it loads."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("`model` has nothing to train: load its adapter with `is_trainable=True`.")


@contextmanager
def reference_adapter(
    policy: nn.Module, trained: str | None = None, reference: str | None = None
) -> Iterator[nn.Module]:
    """Make a policy with an adapter the reference policy.

    Args:
        policy (`PeftModel`):
            The policy.
        trained, reference (`str`, *optional*):
            Names of the adapter that is trained and of the one that is the reference. Without a reference, all adapters
            are switched off.
    """
    with same_gradients(policy):
        if reference is None:
            with policy.disable_adapter():
                yield policy
            return
        policy.set_adapter(reference)
        try:
            yield policy
        finally:
            policy.set_adapter(trained)


@contextmanager
def same_gradients(policy: nn.Module) -> Iterator[None]:
    """Afterwards the parameters that had gradients have them again, and no others: PEFT gives them to all parameters of
    an adapter that it activates."""
    required = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)


@contextmanager
def plain_initialisation(config: "PeftConfig") -> Iterator[None]:
    """Within it, a new adapter of LoRA is initialised as by default, and leaves its base as it is: other ways, such as
    PiSSA, change the base's weights. Afterwards the configuration says what it said."""
    init = getattr(config, "init_lora_weights", None)
    if init is not None:
        config.init_lora_weights = True
    try:
        yield
    finally:
        if init is not None:
            config.init_lora_weights = init
