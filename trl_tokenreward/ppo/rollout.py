"""Collecting completions: sampling, and what the policy, the reference and the value model say of the samples."""

import copy
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..nn.lm_head import HeadLoss, TokenLoss, head_loss, states_and_head, token_logps
from ..nn.sharding import layer_classes
from ..nn.unpadding import right_packed, state_columns, without_peft
from .completion_scorer import packed_prefix_scores
from .prompts import Prompts


# Tokens whose probabilities are summed up before it is looked up which of them is drawn.
_BLOCK = 256


class Completions(NamedTuple):
    """Sampled completions.

    Attributes:
        ids (`Tensor`):
            Shape (B, T), filled up with the pad token.
        mask (`Tensor`):
            Shape (B, T), 1 up to and including the stop token.
        per_token_logps (`Tensor`):
            Shape (B, T): log-probabilities of the sampled tokens at the sampling temperature, 0 where the mask is 0.
        ended (`Tensor`):
            Shape (B,): whether the completion ends with the stop token.
    """

    ids: Tensor
    mask: Tensor
    per_token_logps: Tensor
    ended: Tensor


class Rollout(NamedTuple):
    """All that PPO needs to know of one batch of completions. B completions, P prompt columns, T completion columns.

    Attributes:
        prompt_ids, prompt_mask (`Tensor`):
            Shape (B, P), left-padded.
        completion_ids, completion_mask (`Tensor`):
            Shape (B, T), right-padded.
        ended (`Tensor`):
            Shape (B,).
        per_token_logps, ref_per_token_logps (`Tensor`):
            Shape (B, T), nats.
        values (`Tensor`):
            Shape (B, T): V(s_t), before token t.
        final_values (`Tensor`):
            Shape (B,): the value after the last real token.
        raw_scores (`Tensor`):
            Shape (B,): each completion's total as the reward model gives it, before shaping.
        raw_token_scores (`Tensor`):
            Shape (B, T): what it is made up of, 0 where the mask is 0.
        token_level_scores (`Tensor`):
            Shape (B, T).
        kl (`Tensor`):
            Shape (B, T).
        token_level_rewards, advantages, returns (`Tensor`):
            Shape (B, T).
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    ended: Tensor
    per_token_logps: Tensor
    ref_per_token_logps: Tensor
    values: Tensor
    final_values: Tensor
    raw_scores: Tensor
    raw_token_scores: Tensor
    token_level_scores: Tensor
    kl: Tensor
    token_level_rewards: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.prompt_ids, self.prompt_mask)


def uniforms(seed: tuple[int, ...], rows: range, length: int) -> Tensor:
    """Random numbers in [0, 1) to sample with, float64 of shape (len(rows), length).

    A row's numbers depend on the seed and on its own number in the batch alone: not on the process that samples it, nor on
    what was drawn before. So a resumed run, and a run on another number of processes, sample the same completions.
    """
    return torch.from_numpy(np.stack([np.random.default_rng([*seed, row]).random(length) for row in rows]))


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for each row from softmax(logits / temperature) by inverting its distribution function.

    Args:
        logits (`Tensor`):
            Shape (B, V).
        temperature (`float`):
            0 takes the likeliest token; log-probabilities are then those at temperature 1.
        uniform (`Tensor`):
            Shape (B,), in [0, 1).

    Returns:
        `tuple[Tensor, Tensor]`: Token ids and their log-probabilities, of shape (B,).
    """
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    exponentials = logits - peak
    if temperature not in (0, 1):
        exponentials /= temperature
    exponentials.exp_()
    if temperature == 0:
        tokens, total = logits.argmax(-1), exponentials.sum(-1)
    else:
        tokens, total = _invert(exponentials, uniform)
    # Not of the exponential, which is 0 for a token that is hardly likely.
    chosen = (logits.gather(-1, tokens.unsqueeze(-1)) - peak).squeeze(-1)
    return tokens, chosen / (temperature or 1.0) - total.log().float()


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where in each row of weights, (B, V), its share `uniform`, (B,), of the whole is reached; and the rows' sums.

    Sums run over blocks first and then within one block, so that there is one pass over all weights. Across blocks they
    run in float64: the sum of 150,000 float32 probabilities is off by more than the rare ones are worth.
    """
    size = min(_BLOCK, weights.shape[1])
    whole = weights.shape[1] // size * size
    blocks = weights[:, :whole].unflatten(1, (-1, size)).sum(-1)
    rest = weights[:, whole:].sum(-1, keepdim=True)
    cumulative = torch.cat([blocks, rest], dim=1).double().cumsum(-1)
    total = cumulative[:, -1]
    target = uniform.to(total) * total
    block = _first_beyond(cumulative, target)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0)
    columns = block.unsqueeze(-1) * size + torch.arange(size, device=weights.device)
    inside = weights.gather(-1, columns.clamp(max=weights.shape[1] - 1)).double() * (columns < weights.shape[1])
    return block * size + _first_beyond(inside.cumsum(-1), target - before), total


def _first_beyond(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first place in each row whose cumulative weight exceeds the target; never one behind the last weight."""
    place = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(place, last).squeeze(-1)


class _PreallocatedLayer(DynamicLayer):
    """A cache layer with room for what is to come: `DynamicLayer` copies all that it holds for every token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (key_states, value_states)]
        end = self.length + key_states.shape[2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, self.length : end] = states
        self.length = end
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        # In place: only rows that are kept move, and only as far as they are filled.
        for room in self._room:
            room[: len(indices), :, : self.length] = room[indices, :, : self.length]
        self._room = [room[: len(indices)] for room in self._room]
        self.keys, self.values = (room[:, :, : self.length] for room in self._room)


def _cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_PreallocatedLayer(capacity) if type(x) is DynamicLayer else x for x in cache.layers]
    return cache


def _cache_argument(model: PreTrainedModel) -> str:
    """Transformers has called it `cache` since 5.24, and takes the old name no longer from 5.40 on."""
    return "cache" if "cache" in signature(without_peft(model).forward).parameters else "past_key_values"


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Prompts,
    uniform: Tensor,
    *,
    temperature: float,
    stop_token_id: int | None,
    pad_token_id: int,
) -> Completions:
    """Sample completions from the model's own distribution.

    `model.generate` is not used, because the model's generation config would then have a say (a repetition penalty, say,
    that training knows nothing of), and because its sampling depends on the batch. Rows that have ended leave the batch.

    Args:
        model (`PreTrainedModel`):
            A causal language model in evaluation mode, under PEFT or not.
        prompts (`Prompts`):
            B prompts.
        uniform (`Tensor`):
            Shape (B, T) with T the most tokens in a completion; see [`uniforms`].
        temperature (`float`):
            0 is greedy.
        stop_token_id (`int` or `None`):
            Ends a completion and belongs to it. `None`: every completion has T tokens.
        pad_token_id (`int`):
            Filler.

    Returns:
        `Completions`: B completions of at most T tokens.
    """
    batch_size, length = uniform.shape
    device = prompts.ids.device
    uniform = uniform.to(device)
    ids = torch.full((batch_size, length), pad_token_id, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    logps = torch.zeros(batch_size, length, device=device)
    ended = torch.zeros(batch_size, dtype=torch.bool, device=device)

    active = torch.arange(batch_size, device=device)
    cache = _cache(model, prompts.ids.shape[1] + length)
    cache_argument = _cache_argument(model)
    step_ids, attention_mask = prompts.ids * prompts.mask, prompts.mask
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    padded = not bool(attention_mask.all())
    for t in range(length):
        logits = model(
            input_ids=step_ids,
            attention_mask=attention_mask if padded else None,
            position_ids=positions,
            **{cache_argument: cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens, token_logps = sample(logits, temperature, uniform[active, t])
        ids[active, t] = tokens
        mask[active, t] = 1
        logps[active, t] = token_logps
        if stop_token_id is not None:
            going = tokens != stop_token_id
            ended[active[~going]] = True
            if not going.any():
                break
            if not going.all():
                keep = going.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                active, tokens, attention_mask, positions = (
                    x[keep] for x in (active, tokens, attention_mask, positions)
                )
        step_ids = tokens.unsqueeze(1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(tokens), 1)], dim=1)
        positions = positions[:, -1:] + 1
    width = int(mask.sum(1).max())
    return Completions(ids[:, :width], mask[:, :width], logps[:, :width], ended)


def completion_logps(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int, temperature: float
) -> Tensor:
    """Log-probabilities of the last `length` tokens.

    The token at column c is predicted by the output at column c - 1; logits are made for those columns alone.

    Args:
        model (`nn.Module`):
            A causal language model.
        input_ids, attention_mask (`Tensor`):
            Shape (B, P + T): prompts padded on the left, completions padded on the right.
        length (`int`):
            T.
        temperature (`float`):
            Divides the logits.

    Returns:
        `Tensor`: Shape (B, T), nats, 0 where the mask is 0. No gradient.
    """
    ids, columns, mask = _packed_states(input_ids, attention_mask, length)
    states, head = states_and_head(model, ids, columns)
    return _unflatten(token_logps(head, states, ids.flatten()[columns + 1], temperature), mask)


def completion_values(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Values of the states before each of the last `length` tokens, (B, T), 0 where the mask is 0; and of the state after
    the last real one, (B,)."""
    ids, columns, mask = _packed_states(input_ids, attention_mask, length)
    lengths = attention_mask.sum(1)
    packed_mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    values = packed_prefix_scores(model, ids, packed_mask.long())
    final = values.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
    return _unflatten(values.flatten()[columns], mask), final


def _packed_states(input_ids: Tensor, attention_mask: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-packed ids, where the states before the completions' tokens stand in them, and the completions' mask."""
    mask = attention_mask[:, -length:]
    ids, _ = right_packed(input_ids, attention_mask)
    return ids, state_columns(attention_mask[:, :-length].sum(1), mask.sum(1), ids.shape[1]), mask


def _unflatten(per_token: Tensor, mask: Tensor) -> Tensor:
    """Numbers of the N real tokens, row by row, as (B, T)."""
    return per_token.new_zeros(mask.shape).masked_scatter(mask.bool(), per_token)


def independent_copy(model: nn.Module) -> nn.Module:
    """A deep copy that runs its own weights.

    TRL's SFTTrainer (seen in 1.12 and 1.16) replaces a model's `forward` by a function that remembers the model. A deep copy
    takes the function along, and with it runs the first model's weights: as a reference policy it would follow the policy.
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if _runs_another(module) is not None:
            del module.forward  # uncovers the class's own
    return twin


def check_own_forward(model: nn.Module, argument: str) -> None:
    """Raise a `ValueError` if the model is a deep copy that runs another model's weights, see [`independent_copy`]."""
    for module in model.modules():
        if _runs_another(module) is not None:
            raise ValueError(
                f"`{argument}` is a deep copy of a {type(module).__name__} whose `forward` a trainer has replaced: it would "
                "run the other model's weights. Load it from a checkpoint, or delete its attribute: `del model.forward`."
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


class PolicyAndValue(nn.Module):
    """Policy and value model in one module, so that one forward pass, one optimizer and one wrapper serve both.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        value_model (`PreTrainedModel` or `PeftModel`):
            See [`~ppo.completion_scorer.prefix_scores`].
    """

    # What transformers.Trainer asks of a model.
    supports_gradient_checkpointing = True
    main_input_name = "input_ids"

    def __init__(self, policy: nn.Module, value_model: nn.Module):
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        # A copy, because Trainer writes the tokenizer's special tokens into it: a pad token that only the tokenizer has would
        # make a checkpoint that cannot be loaded.
        self.config = copy.deepcopy(policy.config)
        # What FSDP shards by itself.
        self._no_split_modules = layer_classes(policy, value_model)

    def forward(
        self, input_ids: Tensor, columns: Tensor, temperature: float, token_loss: TokenLoss
    ) -> tuple[HeadLoss, Tensor]:
        """What the loss needs of the parameters, for N completion tokens.

        Args:
            input_ids (`Tensor`):
                Shape (B, L), right-packed prompts and completions.
            columns (`Tensor`):
                Shape (N,): the states before the completions' tokens, see [`~nn.unpadding.state_columns`].
            temperature (`float`):
                Divides the logits.
            token_loss (`Callable`):
                The policy's loss, see [`~nn.lm_head.head_loss`].

        Returns:
            `tuple[HeadLoss, Tensor]`: The policy's loss, and the values, (N,).
        """
        states, head = states_and_head(self.policy, input_ids, columns)
        policy = head_loss(head, states, input_ids.flatten()[columns + 1], temperature, token_loss)
        return policy, packed_prefix_scores(self.value_model, input_ids).flatten()[columns]

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.policy.is_gradient_checkpointing

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        for model in (self.policy, self.value_model):
            model.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        for model in (self.policy, self.value_model):
            model.gradient_checkpointing_disable()

    def activation_checkpointing_enable(self, *args, **kwargs) -> None:
        for model in (self.policy, self.value_model):
            model.activation_checkpointing_enable(*args, **kwargs)

    def add_model_tags(self, tags: list[str] | str) -> None:
        self.policy.add_model_tags(tags)
