"""The model that a [`TokenRewardTrainer`] trains, made of what it is given."""

import copy
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..nn.adapters import check_adapter, plain_initialisation
from ..nn.modules import backbone_of, left_out
from ..nn.precision import warn_of_narrow_weights
from ..nn.sharding import is_zero3
from ..utils.loading import loading
from .config import TokenRewardConfig
from .heads import widen_heads
from .modeling import TokenRewardModel


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


logger = get_logger(__name__)

HEADS = ("score", "token_score")


def load_model(
    name: str, args: TokenRewardConfig, quantization_config: "BitsAndBytesConfig | None"
) -> TokenRewardModel:
    """The model of a name on the Hub or a folder, loaded as `args` says."""
    kwargs = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in kwargs:
            raise ValueError(
                "`quantization_config` is given twice, to the trainer and in `args.model_init_kwargs`. Give it to one."
            )
        kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
        kwargs["device_map"] = None  # each process holds the whole model
    kwargs.setdefault("device_map", None if args.device.type in ("cpu", "mps") else "auto")
    kwargs.setdefault("dtype", "float32")
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    with loading(name, "model"):
        return TokenRewardModel.from_pretrained(name, **kwargs)


def as_token_reward_model(model: "PreTrainedModel | PeftModel") -> "TokenRewardModel | PeftModel":
    """The model itself, or a token reward model of its modules. The adapter of a PEFT model stays or moves along."""
    if not is_peft_model(model):
        return TokenRewardModel.from_backbone(model, copy=False)
    if isinstance(model.get_base_model(), TokenRewardModel):
        return model
    return _with_adapter_moved(model)


def _with_adapter_moved(model: "PeftModel") -> "PeftModel":
    """A PEFT model around a token reward model of the same modules, with the same adapter, and with trained heads."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    check_adapter(model, "model")
    if len(model.peft_config) != 1 or not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"`model` is a PEFT model around a {type(model.get_base_model()).__name__} with the adapters "
            f"{sorted(model.peft_config)}. Pass one with a single adapter, loaded with `is_trainable=True`, or make a "
            "`TokenRewardModel` of the base model and wrap that."
        )
    [(name, config)] = model.peft_config.items()
    _require_modules_to_save(config)
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    base = model.unload()
    # In the base model the backbone has a name of its own, in a token reward model it is `model`.
    backbone = backbone_of(base)
    prefix = next(f"{name}." for name, module in base.named_modules() if module is backbone)
    token_reward_model = TokenRewardModel.from_backbone(base, copy=False)
    config = with_trained_heads(config, token_reward_model)
    with plain_initialisation(config):  # the base model's weights were changed when the adapter was made
        moved = get_peft_model(token_reward_model, config, adapter_name=name)
    root = "base_model.model."
    state = {key.replace(root + prefix, f"{root}model.", 1): tensor for key, tensor in state.items()}
    new_state = get_peft_model_state_dict(moved, adapter_name=name, save_embedding_layers=False)
    unknown = sorted(set(state) - set(new_state))
    if unknown:
        raise ValueError(
            f"The adapter of `model` changes {unknown[0].removeprefix(root)!r}, which a token reward model does not "
            "have: take it out of the adapter's `target_modules` or `modules_to_save`."
        )
    set_peft_model_state_dict(moved, {**new_state, **state}, adapter_name=name)
    return moved


def check_pad_token(tokenizer: PreTrainedTokenizerBase, size: int | None) -> None:
    """Raise a `ValueError` if a model with `size` embeddings has none for the pad token."""
    pad = tokenizer.pad_token_id
    if size is not None and pad is not None and pad >= size:
        raise ValueError(
            f"The model has {size} embeddings, and none for the pad token {tokenizer.pad_token!r}, whose id is {pad}. "
            "Set `tokenizer.pad_token` to one that it has, such as the EOS, or resize it with "
            "`model.resize_token_embeddings(len(tokenizer))`."
        )


def with_trained_heads(peft_config: "PeftConfig", model: TokenRewardModel) -> "PeftConfig":
    """A copy of the configuration that trains the heads in full, and of the backbone what it would of a model of the
    backbone's own type."""
    _require_modules_to_save(peft_config)
    peft_config = copy.deepcopy(peft_config)
    if peft_config.task_type not in (None, "SEQ_CLS", "TOKEN_CLS"):
        logger.warning(
            f"PEFT's `task_type` is 'SEQ_CLS' here, not {peft_config.task_type!r}: the model generates nothing."
        )
        peft_config.task_type = "SEQ_CLS"
    given = list(peft_config.modules_to_save or [])
    missing = [head for head in HEADS if head not in given]
    if missing:
        logger.warning(f"Added the heads {missing} to PEFT's `modules_to_save`, so that they are trained.")
    peft_config.modules_to_save = given + missing
    if peft_config.peft_type.value != "LORA":
        return peft_config
    # PEFT knows by a model's type which layers to adapt, and which parameters hold the experts that modules stand for.
    # The type that it would see is the whole model's, so it gets the same modules under the backbone's configuration.
    if peft_config.target_modules is None:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        backbone_type = model.config.text_config.model_type
        peft_config.target_modules = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(backbone_type)
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # PEFT 0.18 knows of no such parameters
        return peft_config
    if peft_config.target_modules is not None:
        as_backbone = copy.copy(model)
        as_backbone.config = model.config.text_config
        convert_peft_config_for_transformers(peft_config, as_backbone, None)
        if not isinstance(peft_config.target_modules, str):
            peft_config.target_modules = set(peft_config.target_modules) - set(HEADS)
    return peft_config


def _require_modules_to_save(peft_config: "PeftConfig") -> None:
    if not hasattr(peft_config, "modules_to_save"):
        raise ValueError(
            f"A {type(peft_config).__name__} trains no modules in full (it has no `modules_to_save`), but the heads of "
            "a token reward model have to be. Use one that does, such as `LoraConfig`."
        )


def require_trainable_token_head(
    model: "PreTrainedModel | PeftModel", args: TokenRewardConfig, optimizer: torch.optim.Optimizer | None
) -> None:
    """Raise a `ValueError` if the token head is untrained and will stay so. `optimizer` is the caller's, if given."""
    head = {name: p for name, p in model.named_parameters() if "token_score" in name.split(".")}
    if not args.token_loss_weight or any(p.any() for p in head.values()):
        return
    if missing := [name for name in left_out(optimizer, model) if name in head]:
        raise ValueError(
            f"The token head is untrained, and the optimizer in `optimizers` lacks {missing[0]}, so it would say 0 of "
            "every token for ever. Pass a `TokenRewardModel` (`from_backbone` makes one), a `PeftModel` in place of "
            "`peft_config`, and an optimizer of its parameters."
        )
    if not any(p.requires_grad for p in head.values()):
        raise ValueError(
            "The token head is untrained and frozen, so it would say 0 of every token for ever. Add 'token_score' to "
            "PEFT's `modules_to_save`, or unfreeze it."
        )


def settle_precision(model: "PreTrainedModel | PeftModel", accelerator: Accelerator) -> None:
    """Have heads beside an adapter trained in float32, as the adapter is, and warn of what is trained in less."""
    if is_peft_model(model) and not is_zero3(accelerator):  # which gathers weights of one type alone
        widen_heads(model)
    warn_of_narrow_weights({"model": model}, accelerator)


def zero_sequence_head(model: "PreTrainedModel | PeftModel") -> None:
    """Set the sequence head to zero, which says that it is not trained."""
    for name, parameter in model.named_parameters():
        if "score" in name.split("."):
            torch.nn.init.zeros_(parameter)
