"""The precision of weights that are trained."""

from collections.abc import Mapping

from accelerate import Accelerator
from accelerate.utils import DistributedType, is_peft_model
from torch import nn
from transformers.utils import logging

from .modules import without_peft


logger = logging.get_logger(__name__)


def is_narrow(parameter: nn.Parameter) -> bool:
    """True if a parameter has gradients, and fewer bits than float32."""
    return parameter.requires_grad and parameter.element_size() < 4


def widen(module: nn.Module) -> None:
    """Make float32 of what is trained in less."""
    for parameter in module.parameters():
        if is_narrow(parameter):
            parameter.data = parameter.data.float()


def warn_of_narrow_weights(models: Mapping[str, nn.Module], accelerator: Accelerator) -> None:
    """Warn of models, by the arguments that they come in, whose trained weights stay in bfloat16 or float16: a step of
    3e-6 is less than half of what 8 bits tell apart at .002, and such weights never move."""
    if _optimizer_has_float32(accelerator):
        return
    for argument, model in models.items():
        if is_peft_model(model) and getattr(without_peft(model), "is_quantized", False):
            continue  # TRL trains these adapters in bfloat16, as QLoRA's authors do.
        narrow = next((named for named in model.named_parameters() if is_narrow(named[1])), None)
        if narrow is not None:
            name, parameter = narrow
            logger.warning(
                f"Weights of `{argument}` are trained in {str(parameter.dtype).removeprefix('torch.')} ({name}), in "
                'which most of an optimizer\'s steps are rounded away. Load the model with `dtype="float32"`; with '
                "`bf16=True` it still computes in bfloat16."
            )


def _optimizer_has_float32(accelerator: Accelerator) -> bool:
    """True if DeepSpeed or FSDP makes weights of float32 for the optimizer when training begins."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.mixed_precision != "no"
    return accelerator.distributed_type == DistributedType.DEEPSPEED
