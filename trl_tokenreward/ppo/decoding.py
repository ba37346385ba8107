"""The logits of next tokens, with a cache where the model has one that serves."""

from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging

from ..nn.lm_head import states_and_head
from ..nn.modules import rounding_unit, without_peft
from ..nn.unpadding import right_packed
from .prompts import Prompts, join


logger = logging.get_logger(__name__)

# Names of the argument that takes a `Cache`: `cache` since transformers 5.24, which drops `past_key_values` in 5.40;
# before, `cache_params` in state space models.
_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")


class _PreallocatedLayer(DynamicLayer):
    """A cache layer that allocates its memory once: `DynamicLayer` copies its content for every token."""

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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        # In place, so that only the filled part of kept rows moves. A layer that the model never fills has no room.
        if self.length == 0:
            return
        for room in self._room:
            room[: len(beam_idx), :, : self.length] = room[beam_idx, :, : self.length]
        self._room = [room[: len(beam_idx)] for room in self._room]
        self.keys, self.values = (room[:, :, : self.length] for room in self._room)


class CachedDecoding:
    """The logits of next tokens, made of the last token and a cache of those before it.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model that can, see [`decoding_of`].
        prompts (`Prompts`):
            B prompts.
        length (`int`):
            Most tokens that are added to them.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, length: int):
        self._model, self._argument = model, _cache_argument(model)
        # A mixture of experts would make its auxiliary loss, with a mask over all tokens for the logits of the last.
        takes_routers = hasattr(without_peft(model).config.get_text_config(), "output_router_logits")
        self._no_routers = {"output_router_logits": False} if takes_routers else {}
        self._cache = DynamicCache(config=model.config)
        capacity = prompts.ids.shape[1] + length
        self._cache.layers = [
            _PreallocatedLayer(capacity) if type(x) is DynamicLayer else x for x in self._cache.layers
        ]
        self._ids, self._mask = prompts.ids * prompts.mask, prompts.mask
        self._positions = (prompts.mask.cumsum(1) - 1).clamp(min=0)
        self._padded = not bool(prompts.mask.all())

    def logits(self) -> Tensor:
        """Shape (B, V). To be called once for each token."""
        return self._model(
            input_ids=self._ids,
            attention_mask=self._mask if self._padded else None,
            position_ids=self._positions,
            **{str(self._argument): self._cache},
            **self._no_routers,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        # What beam search calls: recurrent states have no `batch_select_indices` (seen in transformers 5.23).
        self._cache.reorder_cache(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def append(self, tokens: Tensor) -> None:
        """Add a token, (B,), to each row."""
        self._ids = tokens.unsqueeze(1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        # A mask over all tokens is for attention. That of a state space model is for those it is given.
        self._padded = self._padded and any(isinstance(layer, DynamicLayer) for layer in self._cache.layers)


class PlainDecoding:
    """The same as [`CachedDecoding`], for any causal model: each token takes a pass over all before it."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, length: int):
        self._model, self._ids, self._mask = model, prompts.ids, prompts.mask

    def logits(self) -> Tensor:
        ids, _ = right_packed(self._ids, self._mask)
        ends = torch.arange(len(ids), device=ids.device) * ids.shape[1] + self._mask.sum(1) - 1
        states, head = states_and_head(self._model, ids, ends)
        return head(states, temperature=1.0)

    def keep(self, rows: Tensor) -> None:
        self._ids, self._mask = self._ids[rows], self._mask[rows]

    def append(self, tokens: Tensor) -> None:
        tokens = tokens.unsqueeze(1)
        self._ids, self._mask = join(Prompts(self._ids, self._mask), tokens, torch.ones_like(tokens))


# Which models decode with a cache, by model: found out once for each.
_CACHED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def decoding_of(model: PreTrainedModel, prompts: Prompts, length: int) -> CachedDecoding | PlainDecoding:
    """How to decode with a model: with a cache where that gives the logits of passes over whole texts, else without.

    Args:
        model, prompts, length:
            See [`CachedDecoding`]. The model is in evaluation mode.
    """
    base = without_peft(model)
    if base not in _CACHED:
        _CACHED[base] = _cache_serves(model)
        if not _CACHED[base]:
            logger.warning(
                f"{type(base).__name__} is sampled from without a cache, since with one it does not give what it gives "
                "for whole texts: each token takes a pass over all before it."
            )
    return (CachedDecoding if _CACHED[base] else PlainDecoding)(model, prompts, length)


@torch.no_grad()
def _cache_serves(model: PreTrainedModel) -> bool:
    """True if decoding with a cache gives the logits of passes over whole texts, on two short rows as a test.

    Some models keep their state in something else than a `Cache`: they would ignore one without a word, and read one
    token alone. For others, padding on the left is part of what they read.
    """
    base = without_peft(model)
    if _cache_argument(model) is None or not base._supports_default_dynamic_cache():
        return False
    ids = torch.arange(16, device=base.device).view(2, 8) % base.config.get_text_config().vocab_size
    mask = torch.ones_like(ids[:, :6])
    mask[1, :3] = 0
    prompts, tokens = Prompts(ids[:, :6], mask), ids[:, 6:]
    try:
        cached = _logits_of_rows(CachedDecoding(model, prompts, 2), tokens)
    except Exception as error:  # of whatever kind: passes over whole texts will say it again if they fail too
        logger.warning(f"{type(base).__name__} does not take a cache: {type(error).__name__}: {error}")
        return False
    whole = _logits_of_rows(PlainDecoding(model, prompts, 2), tokens)
    last_alone = PlainDecoding(model, Prompts(ids[:, 5:6], mask[:, 5:6]), 0).logits().float()
    # Measured by what the context changes, since that is what is lost when it is not read, or read shifted.
    of_context = (whole[:2] - last_alone).abs().max()
    rounding = 4 * rounding_unit(base) * whole.abs().max()
    return bool((cached - whole).abs().max() <= 0.05 * of_context + rounding)


def _logits_of_rows(decoding: CachedDecoding | PlainDecoding, tokens: Tensor) -> Tensor:
    """Logits of two rows, before and after a token, and of the second after one more, when the first has left."""
    logits = [decoding.logits()]
    decoding.append(tokens[:, 0])
    logits.append(decoding.logits())
    decoding.keep(torch.tensor([1], device=tokens.device))
    decoding.append(tokens[1:, 1])
    logits.append(decoding.logits())
    return torch.cat(logits).float()


def _cache_argument(model: PreTrainedModel) -> str | None:
    parameters = signature(without_peft(model).forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)
