"""The models of PPO: policy, reference, value and reward model, checked and made ready."""

import copy
from itertools import chain
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from .._trl import disable_dropout_in_model
from ..nn.adapters import check_adapter, plain_initialisation, require_something_to_train, same_gradients
from ..nn.modules import check_loaded, check_own_forward, independent_copy, left_out, vocab_size, without_peft
from ..nn.precision import widen
from ..nn.sharding import copied, will_shard
from ..reward_model.heads import widen_heads
from ..reward_model.modeling import TokenRewardModel
from ..reward_model.readout import check_scorer, has_sequence_score
from .config import FineGrainedPPOConfig
from .one_base import share_base, value_adapter
from .reward_functions import RewardFunction
from .rewards import Rewards, argument_of, as_list
from .value_head import ValueHead


class PPOModels(NamedTuple):
    """The models of a run.

    Attributes:
        policy (`nn.Module`):
            A causal language model, under PEFT or not.
        value_model (`nn.Module`):
            A model with a sequence head.
        ref_model (`nn.Module` or `None`):
            The reference policy. `None`: the policy with its adapter switched off, or with its reference adapter.
        rewards (`tuple`):
            Reward models, and reward functions.
        trained_adapter, ref_adapter (`str` or `None`):
            Names of the policy's adapter that is trained and of the one that is the reference, if one is.
    """

    policy: nn.Module
    value_model: nn.Module
    ref_model: nn.Module | None
    rewards: tuple[nn.Module | RewardFunction, ...]
    trained_adapter: str | None = None
    ref_adapter: str | None = None

    @property
    def frozen(self) -> list[nn.Module]:
        """The models that are not trained, each once."""
        frozen = [model for model in (self.ref_model, *self.rewards) if isinstance(model, nn.Module)]
        return [model for i, model in enumerate(frozen) if not any(model is other for other in frozen[:i])]


def check_given(
    policy: nn.Module, ref_model: nn.Module | None, reward_model: Any, value_model: nn.Module | None
) -> None:
    """Check the models that a user passes, before any work is done.

    Raises:
        TypeError: If a model is no model, such as its name.
        ValueError: If there is no reward model, two arguments are one object, a reward reads a model that is trained,
            or a model runs another's weights.
    """
    rewards = as_list(reward_model)
    if reward_model is None or not rewards:
        raise ValueError("`reward_model` is required: a model, or a function that scores completions.")
    check_loaded(policy, "model")
    if ref_model is not None:
        check_loaded(ref_model, "ref_model")
    if value_model is not None:
        check_loaded(value_model, "value_model", "TokenRewardModel")
    if ref_model is policy:
        raise ValueError("`model` and `ref_model` are one object: pass `ref_model=None` to have it copied.")
    if ref_model is not None and without_peft(ref_model) is without_peft(policy):
        raise ValueError(
            "`model` and `ref_model` are one model under an adapter, which acts in both: pass `ref_model=None`, and "
            "the reference is `model` as it is without an adapter."
        )
    given = {"model": policy, "ref_model": ref_model, "value_model": value_model}
    for index, reward in enumerate(rewards):
        argument = argument_of(index, len(rewards))
        given[argument] = reward
        if value_model is not None and value_model is reward:
            raise ValueError(
                f"`value_model` and `{argument}` are one object: pass `value_model=None` to have it copied."
            )
        check_not_trained(reward, policy, argument)
    for argument, model in given.items():
        if isinstance(model, nn.Module):
            check_own_forward(model, argument)


def check_not_trained(reward: Any, policy: nn.Module, argument: str) -> None:
    """Raise a `ValueError` if a reward reads the model that is trained, so that it would change with it."""
    if isinstance(reward, nn.Module) and any(module is without_peft(policy) for module in reward.modules()):
        raise ValueError(f"`{argument}` reads `model` itself, which is trained: load the model a second time for it.")


def prepare_models(
    args: FineGrainedPPOConfig,
    policy: nn.Module,
    ref_model: nn.Module | None,
    rewards: Rewards,
    value_model: nn.Module | None,
    peft_config: Any = None,
) -> PPOModels:
    """Make the models that are missing, wrap the policy in its adapter, and switch off dropout and unused gradients.

    Args:
        args ([`FineGrainedPPOConfig`]):
            The adapters' names, and whether gradients are checkpointed.
        policy, ref_model, value_model:
            As the trainer takes them, see [`check_given`].
        rewards ([`~ppo.rewards.Rewards`]):
            The rewards.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter for the policy.

    Raises:
        ValueError, TypeError: If a model is not supported. The error names the argument.
    """
    check_vocabularies(policy, {"ref_model": ref_model, "value_model": value_model, **rewards.readers})
    if args.share_value_backbone and value_model is not None:
        raise ValueError("`value_model` has no effect with `share_value_backbone=True`: pass one of them.")
    # What a value model can begin as a copy of.
    first = next((model for model in rewards.readers.values() if has_sequence_score(model)), None)
    with_adapters = args.share_base if args.share_base is not None else peft_config is not None
    if value_model is None and not args.share_value_backbone:
        if not with_adapters:
            source = policy if first is None else first
            value_model = copied(source, lambda model: _from_zero(TokenRewardModel.from_backbone(model), args))
        elif first is None and not _changes_nothing(peft_config):
            first = copied(policy, TokenRewardModel.from_backbone)  # for the adapter may change the policy's base
    policy, *adapters = _with_adapter(args, policy, ref_model, peft_config)
    share = with_adapters and _can_share(args, policy)
    if share:
        share_base(policy, value_model, ref_model, *(reward.scorer.reward for reward in rewards.given))
    if args.share_value_backbone:
        value_model = ValueHead(policy)
    elif value_model is None:
        config = peft_config or policy.peft_config[policy.active_adapters[0]]
        source = policy if first is None else first
        value_model = copied(source, lambda _: _from_zero(value_adapter(policy, first, config, share), args))
    _check_value_model(value_model)
    for trained in (policy, value_model):
        if is_peft_model(trained) and args.gradient_checkpointing:
            trained.enable_input_require_grads()
    if ref_model is None and not is_peft_model(policy):
        ref_model = copied(policy, independent_copy)
    models = PPOModels(
        policy, value_model, ref_model, tuple(reward.scorer.reward for reward in rewards.given), *adapters
    )
    for model in (policy, value_model, *models.frozen):
        _disable_dropout(model)
    for model in models.frozen:
        model.requires_grad_(False).eval()
    return models


def check_optimizer(optimizer: torch.optim.Optimizer | None, models: PPOModels) -> None:
    """Raise a `ValueError` if the caller's optimizer lacks what is to be trained, as it does of what is made here."""
    for argument, model in {"model": models.policy, "value_model": models.value_model}.items():
        if missing := left_out(optimizer, model):
            raise ValueError(
                f"The optimizer in `optimizers` lacks {missing[0]} of `{argument}`, which would never be trained. Make "
                "it of all parameters of `model` and `value_model` that require gradients: pass a `value_model`, and a "
                "`PeftModel` in place of `peft_config`, since what the trainer makes comes too late. Or override "
                "`create_optimizer`."
            )


def check_vocabularies(policy: nn.Module, readers: dict[str, Any]) -> None:
    """Check that the models that read what the policy samples have embeddings for all of it."""
    largest = vocab_size(policy)
    for name, model in readers.items():
        size = vocab_size(model) if isinstance(model, nn.Module) else None
        if size is not None and largest is not None and size < largest:
            raise ValueError(
                f"`model` has a vocabulary of {largest} and can sample ids that `{name}`, with {size} embeddings, does "
                f"not have. If they share a tokenizer, and one of them is only padded further, load the smaller and "
                f"resize it: `{name}.resize_token_embeddings({largest})`."
            )


def _can_share(args: FineGrainedPPOConfig, policy: nn.Module) -> bool:
    """Whether models can hold one base. What is spread over processes is spread model by model."""
    if not is_peft_model(policy):
        raise ValueError("`share_base=True` needs a policy with an adapter: pass `peft_config`, or leave it unset.")
    sharded = will_shard(args)
    if sharded and args.share_base:
        raise ValueError(
            "`share_base=True` has no effect under FSDP and DeepSpeed, which spread each model's weights by "
            "themselves: leave it unset. The value model gets an adapter all the same."
        )
    return not sharded


@torch.no_grad()
def _from_zero(value_model: nn.Module, args: FineGrainedPPOConfig) -> nn.Module:
    """The model with values of 0, trained in float32. A reward model's head has the scale of its scores, not that of
    returns, and until it has learned another, advantages are of values that mean nothing."""
    for name, parameter in value_model.named_parameters():
        # With an adapter, the head beside the one that is trained is the reward model's.
        if "score" in name.split(".") and (parameter.requires_grad or not is_peft_model(value_model)):
            parameter.zero_()
    if not will_shard(args):  # FSDP and DeepSpeed settle the precision of all that is trained
        widen_heads(value_model) if is_peft_model(value_model) else widen(value_model)
    return value_model


def _check_value_model(value_model: nn.Module) -> None:
    if isinstance(value_model, ValueHead):
        return
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


def _with_adapter(
    args: FineGrainedPPOConfig, policy: nn.Module, ref_model: nn.Module | None, peft_config: Any
) -> tuple[nn.Module, str | None, str | None]:
    """The policy, wrapped in a new adapter if one is configured, with the adapter to train active; and the names of
    that one and of the reference adapter, where an adapter is the reference."""
    if peft_config is not None:
        from peft import get_peft_model

        if is_peft_model(policy):
            raise ValueError("`model` has an adapter already, so `peft_config` would add a second: pass one of them.")
        policy = get_peft_model(policy, peft_config)
    check_adapter(policy, "model")
    if ref_model is not None:
        check_adapter(ref_model, "ref_model")
    trained, reference = None, args.ref_adapter_name
    if reference is not None:
        trained = _choose_adapters(args, policy, ref_model)
    require_something_to_train(policy)
    if is_peft_model(policy) and ref_model is None and reference is None and not _changes_nothing(peft_config):
        trained, reference = _copy_adapter(policy)
    return policy, trained, reference


def _changes_nothing(new: Any) -> bool:
    """True if a new adapter leaves the model as it is, so that the model without it is the policy that a run begins
    with. Some initialisations, such as PiSSA, move weights of the base model into the adapter."""
    if new is None:
        return False
    initial = [value for name, value in vars(new).items() if name.startswith("init_") and name != "init_r"]  # a rank
    return all(value in (True, "gaussian") for value in initial)


def _choose_adapters(args: FineGrainedPPOConfig, policy: nn.Module, ref_model: nn.Module | None) -> str:
    """Activate the adapter that is trained, so that the optimizer gets its parameters, and give its name."""
    if ref_model is not None or not is_peft_model(policy):
        raise ValueError("`ref_adapter_name` needs a `PeftModel` as `model` and `ref_model=None`.")
    trained = args.model_adapter_name or "default"
    for name in (trained, args.ref_adapter_name):
        if name not in policy.peft_config:
            raise ValueError(f"`model` has no adapter {name!r}; it has {sorted(policy.peft_config)}.")
    if trained == args.ref_adapter_name:
        raise ValueError(f"The adapter {trained!r} is trained, so it cannot be `ref_adapter_name` too.")
    policy.set_adapter(trained)
    return trained


def _copy_adapter(policy: nn.Module) -> tuple[str, str]:
    """Copy the active adapter as the reference, under the name that TRL gives it; the names of both."""
    name = "ref"
    if name in policy.peft_config:
        raise ValueError(
            f"`model` has an adapter {name!r}. Set `ref_adapter_name={name!r}` if that is the reference; else rename "
            "it, for the copy of the trained adapter that is the reference gets this name."
        )
    if len(policy.active_adapters) != 1:
        raise ValueError(
            f"`model` has {len(policy.active_adapters)} active adapters, of which no single one can be copied as the "
            "reference: activate one with `set_adapter`, or pass a `ref_model`."
        )
    trained = policy.active_adapters[0]
    config = copy.deepcopy(policy.peft_config[trained])
    with same_gradients(policy), plain_initialisation(config):  # the base's weights were changed for the first adapter
        try:
            policy.add_adapter(name, config)
        except ValueError as error:
            raise ValueError(
                f"The adapter {trained!r} of `model` cannot be copied as the reference ({error}) Pass a `ref_model`."
            ) from error
        policy.set_adapter(trained)
    tensors = dict(chain(policy.named_parameters(), policy.named_buffers()))
    for tensor_name, tensor in tensors.items():
        before, found, after = f".{tensor_name}.".rpartition(f".{trained}.")
        twin = tensors.get(f"{before}.{name}.{after}".strip("."))
        if found and twin is not None:
            twin.data = tensor.data.clone()
            twin.requires_grad_(False)
    return trained, name


# Noise of experts' inputs in training. PhiMoE's `router_jitter_noise` is none: it is a threshold in evaluation too.
_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")


def _disable_dropout(model: nn.Module) -> None:
    """Switch off what is random in training: dropout modules, the rates that layers keep as plain numbers or read in
    their configuration, and noise. Else the policy that is trained is not the one that was sampled from."""
    disable_dropout_in_model(model)
    quiet: dict[int, Any] = {}
    for module in model.modules():
        _zero_rates(module)
        config = vars(module).get("config")
        if config is not None and not isinstance(module, PreTrainedModel):
            # A copy, for the model's own is saved with it.
            if id(config) not in quiet:
                quiet[id(config)] = copy.copy(config)
                _zero_rates(quiet[id(config)])
            module.config = quiet[id(config)]


def _zero_rates(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and ("drop" in name or name in _NOISE):
            setattr(holder, name, 0.0)
