"""Models whose weights are spread over processes, by FSDP2 or by DeepSpeed ZeRO-3: whole weights for rollouts, frozen
models, and checkpoints that say nothing of how many processes there were."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainingArguments

from .._trl import add_deepspeed_hooks, remove_deepspeed_hooks


# What accelerate's launcher sets.
_LAUNCHED_WITH = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def is_fsdp2(accelerator: Accelerator) -> bool:
    """True if models are sharded by FSDP2."""
    return accelerator.distributed_type == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version == 2


def is_zero3(accelerator: Accelerator) -> bool:
    """True if models are sharded by DeepSpeed ZeRO-3."""
    return (
        accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3
    )


def will_shard(args: TrainingArguments) -> bool:
    """True if FSDP or DeepSpeed will have the weights, told before there is an accelerator."""
    launched = any(os.environ.get(name, "false").lower() in ("1", "true") for name in _LAUNCHED_WITH)
    return launched or bool(getattr(args, "fsdp", None))


def check_sharding(accelerator: Accelerator, ds3_gather_for_generation: bool) -> None:
    """Raise a `ValueError` for settings of FSDP and DeepSpeed that PPO cannot run with, and mend those of mixed
    precision."""
    if is_zero3(accelerator) and not ds3_gather_for_generation:
        raise ValueError(
            "`ds3_gather_for_generation=False`: processes decode different numbers of tokens, so they cannot gather "
            "the weights layer by layer, each time together. Leave it at True."
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version} is not supported, since it cannot give rollouts whole weights: set "
            "`fsdp_version: 2` in the configuration of accelerate."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "`fsdp_cpu_ram_efficient_loading` leaves the models of all processes but the first without weights, and "
            "the reference and the reward model would keep it so: set it to false."
        )
    if plugin.mixed_precision_policy is not None:
        # accelerate would have FSDP round what models return, log-probabilities and values too, to 8 bits, and add up
        # the gradients of all processes so. Under DDP both are precise.
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
        )


def layer_classes(*models: nn.Module) -> list[str]:
    """Names of the classes of layers that transformers says are not to be split, of those that the models have."""
    named = {name for model in models for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    return sorted(named & {type(m).__name__ for model in models for m in model.modules()})


# --- whole weights ----------------------------------------------------------------------------------------------------


def shard_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Spread the weights of a model that is not trained over the processes, where those of the trained ones are, or
    move it to the device. Outside of [`unsharded`] it then has no weights to run with."""
    if is_fsdp2(accelerator):
        _fully_shard(model, accelerator)
    elif is_zero3(accelerator):
        _partition(model)
    else:
        model.to(accelerator.device)
        # DeepSpeed runs what is trained in low precision throughout. A reference at another would differ from the
        # policy.
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
        engine = accelerator.distributed_type == DistributedType.DEEPSPEED
        if engine and low is not None and not getattr(model, "is_quantized", False):  # which transformers does not cast
            model.to(low)


def keep_head(root: nn.Module, head: nn.Module | None, accelerator: Accelerator) -> None:
    """Have the weights of a head at hand while `root` runs forward and backward, since they are used without running
    the head itself. FSDP2 does it by itself, for weights outside of layers are the root's."""
    if is_zero3(accelerator) and head is not None:
        import deepspeed

        for parameter in head.parameters():
            deepspeed.zero.register_external_parameter(root, parameter)


def _fully_shard(model: nn.Module, accelerator: Accelerator) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    settings = {
        "offload_policy": plugin.cpu_offload,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
    }
    layers = layer_classes(model)
    # Layer by layer, so that gathering needs a buffer of one layer's size.
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, **settings)
    fully_shard(model, **settings)


def _partition(model: nn.Module) -> None:
    import deepspeed
    from transformers.integrations.deepspeed import deepspeed_config

    if not all(map(_is_partitioned, model.parameters())):
        deepspeed.zero.Init(module=model, config_dict_or_path=deepspeed_config())


def _is_fsdp_module(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _is_partitioned(parameter: nn.Parameter) -> bool:
    """True if DeepSpeed ZeRO-3 manages a parameter. transformers hands it over when a model is loaded."""
    return hasattr(parameter, "ds_id")


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Whole weights of a model (or a reward function) that may have been loaded under DeepSpeed ZeRO-3, to be read."""
    if not isinstance(model, nn.Module) or not any(map(_is_partitioned, model.parameters())):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield


def copied(model: nn.Module, copy: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """`copy(model)`, made of whole weights, and spread over the processes again if the model's are."""
    with gathered(model):
        twin = copy(model)
    if any(map(_is_partitioned, model.parameters())):
        _partition(twin)
    return twin


@contextmanager
def unsharded(model: nn.Module, root: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Whole weights of `model` on this process.

    Forward passes through it then need no other process, so that decoding may take more steps on one than on another.
    Entering takes all processes. Weights must not be changed: nothing is written back.

    Args:
        model (`nn.Module`):
            A model, sharded or not.
        root (`nn.Module`):
            What was sharded as a whole: the trainer's wrapped model for one that is trained, the model itself for
            another.
        accelerator (`Accelerator`):
            The trainer's.
    """
    context: AbstractContextManager[None]
    if is_fsdp2(accelerator) and _is_fsdp_module(root):
        context = _fsdp_unsharded(model, root, accelerator.state.fsdp_plugin.reshard_after_forward)
    elif is_zero3(accelerator) and any(map(_is_partitioned, model.parameters())):
        context = _zero3_unsharded(model, root)
    else:
        context = _on_device(model, accelerator)
    with context:
        yield


@contextmanager
def _on_device(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """A whole model on the device: before the training begins, FSDP and DeepSpeed have the trained models elsewhere."""
    device = next(model.parameters()).device
    move = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    move = move and device != accelerator.device
    if move:
        model.to(accelerator.device)
    try:
        yield
    finally:
        if move:
            model.to(device)


@contextmanager
def _fsdp_unsharded(model: nn.Module, root: nn.Module, reshard_after_forward: bool) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    _begin(root)
    modules = [root, *(m for m in model.modules() if isinstance(m, FSDPModule) and m is not root)]
    for module in modules:
        # Or the first forward pass would free the weights, and the next would gather them again, with all processes.
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            # As accelerate has it: the root keeps its weights from the forward to the backward pass.
            module.set_reshard_after_forward(reshard_after_forward and module is not root, recurse=False)


def _begin(root: nn.Module) -> None:
    """Let FSDP know its root, which otherwise is the module that runs first: a layer, when parts of a model are
    called."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    if not hasattr(root, "_fsdp_begin"):
        root._fsdp_begin = MethodType(lambda self: None, root)
        register_fsdp_forward_method(root, "_fsdp_begin")
        root._fsdp_begin()


@contextmanager
def _zero3_unsharded(model: nn.Module, root: nn.Module) -> Iterator[None]:
    import deepspeed

    is_engine = isinstance(root, deepspeed.DeepSpeedEngine)
    with gathered(model):
        if is_engine:
            remove_deepspeed_hooks(root)
        try:
            yield
        finally:
            if is_engine:
                add_deepspeed_hooks(root)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict with whole tensors on the CPU, under FSDP2 on the first process alone. Takes all
    processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def distributed_like(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors in the distribution that FSDP2 has given the model's: the first process's are spread over all.

    Tensors of names that the model has not, such as PEFT's, are spread as FSDP2 spreads all parameters.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    own = model.state_dict()
    some = next((tensor for tensor in own.values() if isinstance(tensor, DTensor)), None)
    if some is None:
        return state_dict

    def spread(name: str, tensor: Tensor) -> Tensor:
        like = own.get(name, some)
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(some.to_local().device), like.device_mesh, like.placements)

    return {name: spread(name, tensor) for name, tensor in state_dict.items()}


def full_optimizer_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state under FSDP2 as it would be without: whole tensors, by the number of the parameter. On the
    first process alone. Takes all processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    named = get_optimizer_state_dict(model, optimizer, options=options)
    if not named:
        return {}
    numbers = {name: number for number, name in enumerate(_parameter_names(model, optimizer))}
    return {
        "state": {numbers[name]: state for name, state in named["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]
        ],
    }


def load_optimizer_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """The way back of [`full_optimizer_state_dict`], with the state of any optimizer of the same parameters."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    names = _parameter_names(model, optimizer)
    named = {
        "state": {names[number]: state for number, state in state_dict["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in state_dict["param_groups"]
        ],
    }
    set_optimizer_state_dict(model, optimizer, named, options=StateDictOptions(full_state_dict=True))


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters in the order in which its state dict numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
