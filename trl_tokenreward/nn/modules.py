"""Modules: PEFT wrappers, training and evaluation mode, and copies."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..utils.text import shorten


def without_peft(model: nn.Module) -> PreTrainedModel:
    """The transformers model under a PEFT wrapper; its adapters stay in place and act."""
    return model.get_base_model() if isinstance(model, nn.Module) and is_peft_model(model) else model


def check_loaded(model: Any, argument: str, loader: str = "AutoModelForCausalLM") -> None:
    """Raise a `TypeError` unless an argument is a model, and not its name."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`{argument}` must be a model, but is {shorten(model)}: load it with `{loader}.from_pretrained`."
        )


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """What gives a model's last hidden states: the model below its head; itself, if no such part is known."""
    backbone = model.base_model
    if backbone is not model or model.get_output_embeddings() is None:
        return backbone
    # Llama 4's language model says that its backbone has another name than it has (seen in transformers 5.23).
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    embeddings = model.get_input_embeddings()
    return next((part for part in parts if part.get_input_embeddings() is embeddings), model)


def rounding_unit(model: PreTrainedModel) -> float:
    """The relative rounding error of one number in the precision that a model now runs in."""
    device = model.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.finfo(torch.get_autocast_dtype(device) if autocast else model.dtype).eps


def computes_low(model: nn.Module) -> bool:
    """True if a model has products that are less precise than float32's: of weights in bfloat16 or float16, of
    quantized ones, or under TF32, which is CUDA's."""
    parameters = list(model.parameters())
    low = any(p.dtype not in (torch.float32, torch.float64) for p in parameters)
    return low or (any(p.is_cuda for p in parameters) and _multiplies_in_tf32())


def _multiplies_in_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # Since torch 2.9, which raises if it is set in this way and asked for below.
        return matmul.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() != "highest"


def max_positions(model: nn.Module) -> int | None:
    """The most tokens that a model reads, where its configuration says so."""
    said = getattr(without_peft(model).config.get_text_config(), "max_position_embeddings", None)
    return said if said is not None and said > 0 else None  # XLNet, which reads any number, says -1


def vocab_size(model: nn.Module) -> int | None:
    """The number of ids that a model reads (and a language model writes), where its configuration says so."""
    return getattr(without_peft(model).config.get_text_config(), "vocab_size", None)


def is_causal(backbone: nn.Module) -> bool:
    """True if the backbone has attention modules with an attribute `is_causal` and it is true for all of them."""
    said = [module.is_causal for module in backbone.modules() if hasattr(module, "is_causal")]
    return bool(said) and all(said)


def left_out(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> list[str]:
    """Names of the parameters of a model that have gradients and that the caller's optimizer, if given, lacks."""
    if optimizer is None:
        return []
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in optimized]


def make_trainable(model: nn.Module) -> Any:
    """The model, with every parameter trainable but the integers of quantized layers."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has its own former mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def independent_copy(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A deep copy that runs its own weights, except for those that are to be `shared`, which both have.

    TRL's SFTTrainer (seen in 1.12 and 1.16) replaces a model's `forward` by a function that remembers the model. A deep
    copy takes the function along, and with it runs the first model's weights: as a reference policy it would follow the
    policy.
    """
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in twin.modules():
        if _runs_another(module) is not None:
            del module.forward  # uncovers the class's own
    return twin


def check_own_forward(model: nn.Module, argument: str) -> None:
    """Raise a `ValueError` if the model is a deep copy that runs another model's weights, see [`independent_copy`]."""
    for module in model.modules():
        if _runs_another(module) is not None:
            raise ValueError(
                f"`{argument}` is a deep copy of a {type(module).__name__} whose `forward` a trainer has replaced: it "
                "would run the other model's weights. Load it from a checkpoint, or delete its attribute: `del "
                "model.forward`."
            )


def _runs_another(module: nn.Module) -> nn.Module | None:
    """The other module of the same class that this one's replaced `forward` remembers, if there is one."""
    forward = vars(module).get("forward")
    function = getattr(forward, "__func__", forward)
    for cell in getattr(function, "__closure__", None) or ():
        owner = getattr(cell.cell_contents, "__self__", None)
        if type(owner) is type(module) and owner is not module:
            return owner
    return None
