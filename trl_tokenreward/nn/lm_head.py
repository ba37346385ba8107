"""The language-modelling head on chosen tokens, chunk by chunk: log-probabilities, entropies and the gradient of a
loss.

The logits of a batch, [B, T, V], are the largest tensor of PPO by far: with 150,000 tokens in the vocabulary they take
more than a hundred times the room of the hidden states that they are made of. Here they are never made. A buffer of
fixed size takes the logits of some tokens; what is wanted of them is reduced, and the buffer is used again. A loss that
is a sum over tokens is differentiated in the same pass, while the probabilities are at hand, so the backward pass has
no logits to keep or to make again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .modules import backbone_of, evaluation_mode, rounding_unit, without_peft


logger = logging.get_logger(__name__)

# Most tokens whose logits are there at once, and most bytes that these may take: enough for matrix products at full
# speed.
_CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}
_CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**28}

TokenLoss = Callable[[Tensor, slice], Tensor]
# Takes the derivatives of the loss in a chunk's log-probabilities, (n,), and gradients to add the parameters' shares
# to; returns the gradient of the chunk's states, (n, H), and the entropies, (n,).
PullBack = Callable[[Tensor, dict[nn.Parameter, Tensor]], tuple[Tensor, Tensor]]


class HeadLoss(NamedTuple):
    """What [`head_loss`] gives for N tokens.

    Attributes:
        loss (`Tensor`):
            Scalar, the sum of the tokens' losses. It carries the gradient.
        per_token_logps (`Tensor`):
            Shape (N,), nats, float32 (float64 of a float64 model). No gradient.
        entropies (`Tensor`):
            Shape (N,), nats. No gradient.
    """

    loss: Tensor
    per_token_logps: Tensor
    entropies: Tensor


@dataclass(frozen=True)
class OutputHead:
    """How a causal language model makes logits of its last hidden states: `softcap(scale * module(states))`.

    Attributes:
        module (`nn.Module`):
            The model's output embeddings; an identity where the model's own logits stand for the states.
        vocab_size (`int`):
            V, the number of logits.
        scale (`float`):
            As Cohere's and Granite's models have it.
        softcap (`float`, *optional*):
            `softcap * tanh(logits / softcap)`, as Gemma's models have it.
    """

    module: nn.Module
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_linear(self) -> bool:
        """True if the head is one matrix product: no adapter, no quantized weights, no soft cap, no hook."""
        if type(self.module) is not nn.Linear or self.softcap is not None:
            return False
        # The hooks of DeepSpeed ZeRO-3 only see to it that the weights are there, see `sharding.keep_head`.
        return not self.module._forward_hooks or hasattr(self.module.weight, "ds_id")

    def __call__(self, states: Tensor, temperature: float) -> Tensor:
        # Mamba's states are in float32 beside weights in bfloat16, and its own forward pass casts them too.
        weight = getattr(self.module, "weight", None)
        if weight is not None and weight.is_floating_point():
            states = states.to(weight.dtype)
        logits = self.module(states)
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if self.softcap is None:
            return logits * (self.scale / temperature)
        return torch.tanh(logits * (self.scale / self.softcap)) * (self.softcap / temperature)


# Which models make their logits in a way that is known here, by model: found out once for each.
_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def states_and_head(model: nn.Module, input_ids: Tensor, columns: Tensor) -> tuple[Tensor, OutputHead]:
    """Run a causal language model up to its head.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        input_ids (`Tensor`):
            Shape (B, L), right-padded.
        columns (`Tensor`):
            Shape (N,): places in the flattened (B * L,) of the tokens whose states are wanted.

    Returns:
        `tuple[Tensor, OutputHead]`: The last hidden states, (N, H), and what makes logits of them. Where a model does
        more to its logits than is known here, its own logits, (N, V), and an identity: right, but not lean.
    """
    base = without_peft(model)
    head = _output_head(base)
    if base not in _KNOWN:
        _KNOWN[base] = _explains_logits(base, head)
        if not _KNOWN[base]:
            logger.warning(
                f"How {type(base).__name__} makes its logits is not known, so they are made for whole batches: that "
                "takes memory for batch * length * vocabulary."
            )
    if _KNOWN[base]:
        return backbone_of(base)(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)[columns], head
    logits = base(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)[columns]
    return logits, OutputHead(nn.Identity(), logits.shape[1])


def _output_head(base: PreTrainedModel) -> OutputHead:
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return OutputHead(base.get_output_embeddings(), config.vocab_size, scale, softcap)


@torch.no_grad()
def _explains_logits(base: PreTrainedModel, head: OutputHead) -> bool:
    """True if `head` gives the model's own logits from its last hidden states, on three tokens as a test."""
    if head.module is None or backbone_of(base) is base:
        return False
    input_ids = torch.arange(3, device=base.device).unsqueeze(0) % base.config.get_text_config().vocab_size
    with evaluation_mode(base):  # else dropout makes two passes differ
        expected = base(input_ids=input_ids, use_cache=False).logits.float()
        states = backbone_of(base)(input_ids=input_ids, use_cache=False).last_hidden_state
    actual = head(states, temperature=1.0)
    # Looser than rounding, far tighter than another formula would come: at full precision even a soft cap far above
    # the logits shows. Infinities, of tokens that a model rules out, and NaN, of broken weights, are to stand in the
    # same places.
    largest = float(expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max())
    tolerance = max(1e-4, 2.5 * rounding_unit(base)) * largest
    return torch.allclose(actual.to(expected), expected, rtol=0, atol=tolerance, equal_nan=True)


@torch.no_grad()
def token_logps(head: OutputHead, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of tokens, without gradient.

        z = logits / temperature,   log p_y = z_y - log sum_v exp z_v

    Args:
        head (`OutputHead`):
            The head.
        states (`Tensor`):
            Shape (N, H).
        targets (`Tensor`):
            Shape (N,): token ids.
        temperature (`float`):
            Divides the logits.

    Returns:
        `Tensor`: Shape (N,), nats; float32, or float64 for states of float64.
    """
    logps = states.new_empty(len(targets), dtype=_precise(states))
    for rows, chunk_logps, _ in _read(head, states, targets, temperature):
        logps[rows] = chunk_logps
    return logps


@torch.no_grad()
def logps_at(model: nn.Module, input_ids: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of tokens of a batch, each given those before it in its row, without gradient.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        input_ids (`Tensor`):
            Shape (B, L), right-padded.
        columns (`Tensor`):
            Shape (N,): places of the tokens in the flattened (B * L,); none is the first of its row.
        temperature (`float`):
            Divides the logits.

    Returns:
        `Tensor`: Shape (N,), nats; see [`token_logps`].
    """
    states, head = states_and_head(model, input_ids, columns - 1)
    return token_logps(head, states, input_ids.flatten()[columns], temperature)


def head_loss(head: OutputHead, states: Tensor, targets: Tensor, temperature: float, token_loss: TokenLoss) -> HeadLoss:
    """The sum over tokens of a loss of their log-probabilities, differentiable in the states and the head's parameters.

    With g_t the derivative of token t's loss in its log-probability, z = W h / temperature and p = softmax(z),

        dL/dz_t = g_t (onehot(y_t) - p_t),   dL/dh_t = g_t (W[y_t] - sum_v p_tv W_v) / temperature,
        dL/dW = sum_t dL/dz_t h_t^T / temperature

    are worked out chunk by chunk in the forward pass. The backward pass multiplies them by the incoming scalar, so it
    can run once.

    Args:
        head, states, targets, temperature:
            See [`token_logps`].
        token_loss (`Callable`):
            `token_loss(logps, rows)` gives the losses, (n,), of the tokens `rows`, a slice, from their
            log-probabilities, (n,). A token's loss may depend on its own log-probability alone.

    Returns:
        [`HeadLoss`]
    """
    parameters = [p for p in head.module.parameters() if p.requires_grad]
    return HeadLoss(*_HeadLoss.apply(head, states, targets, temperature, token_loss, *parameters))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: OutputHead,
        states: Tensor,
        targets: Tensor,
        temperature: float,
        token_loss: TokenLoss,
        *parameters: nn.Parameter,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _precise(states)
        loss = states.new_zeros((), dtype=dtype)
        logps, entropies = (states.new_empty(len(targets), dtype=dtype) for _ in range(2))
        of_states = torch.empty_like(states)
        # Precise: the shares of many chunks, added up in bfloat16, would lose the small ones.
        of_parameters = {p: torch.zeros_like(p, dtype=_precise(p)) for p in parameters}
        for rows, chunk_logps, pull_back in _read(head, states, targets, temperature):
            logps[rows] = chunk_logps
            with torch.enable_grad():
                leaf = chunk_logps.detach().requires_grad_()
                chunk_loss = token_loss(leaf, rows).sum()
            loss += chunk_loss.detach()
            derivatives = torch.autograd.grad(chunk_loss, leaf)[0]
            of_states[rows], entropies[rows] = pull_back(derivatives, of_parameters)
        ctx.gradients = [of_states, *(gradient.to(p.dtype) for p, gradient in of_parameters.items())]
        ctx.mark_non_differentiable(logps, entropies)
        return loss, logps, entropies

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The loss of the head was differentiated already; its gradient is kept once.")
        gradients, ctx.gradients = ctx.gradients, None
        of_states, *of_parameters = (gradient.mul_(loss_gradient) for gradient in gradients)
        return None, of_states, None, None, None, *of_parameters


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _read(
    head: OutputHead, states: Tensor, targets: Tensor, temperature: float
) -> Iterator[tuple[slice, Tensor, PullBack]]:
    """Chunk by chunk: which rows, their log-probabilities and the way back. Each is used up before the next is made,
    for they share a buffer. To be called without gradients."""
    device = states.device.type
    kind = device if device in _CHUNK_TOKENS else "cuda"
    most = min(_CHUNK_TOKENS[kind], max(1, _CHUNK_BYTES[kind] // (head.vocab_size * _precise(states).itemsize)))
    size = math.ceil(len(targets) / max(1, math.ceil(len(targets) / most)))
    slices = [slice(start, min(start + size, len(targets))) for start in range(0, len(targets), max(1, size))]
    if not head.is_linear:
        for rows in slices:
            yield rows, *_general_chunk(head, states[rows], targets[rows], temperature)
        return
    weight = head.module.weight
    if torch.is_autocast_enabled(device):
        weight = weight.to(torch.get_autocast_dtype(device))
    buffer = weight.new_empty(size, head.vocab_size) if slices else None
    for rows in slices:
        yield rows, *_linear_chunk(head, weight, states[rows], targets[rows], temperature, buffer)


def _linear_chunk(
    head: OutputHead, weight: Tensor, states: Tensor, targets: Tensor, temperature: float, buffer: Tensor
) -> tuple[Tensor, PullBack]:
    """For a head that is one matrix product: with the way back three products, and four passes over the buffer."""
    scale, bias = head.scale / temperature, head.module.bias
    precise, low = _precise(states), weight.dtype
    scaled = states.to(precise) * scale
    logits = torch.mm(scaled.to(low), weight.t(), out=buffer[: len(states)])
    if bias is not None:
        logits.add_(bias.to(low) * scale)
    logits = logits.to(precise)
    chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    peak = logits.amax(1)
    # Not normalised: a factor on each row of the small matrices saves a pass over the large one.
    exponentials = logits.sub_(peak.unsqueeze(1)).exp_()
    total = exponentials.sum(1)
    log_normaliser = peak + total.log()

    def pull_back(derivatives: Tensor, of_parameters: dict[nn.Parameter, Tensor]) -> tuple[Tensor, Tensor]:
        products = exponentials.to(low)
        # sum_v p_v W_v, which the gradient needs, gives the expected logit too.
        expected = torch.mm(products, weight).to(precise) / total.unsqueeze(1)
        expected_logit = (expected * scaled).sum(1)
        if bias is not None:
            expected_logit += scale * (torch.mv(products, bias.to(low)).to(precise) / total)
        share = (derivatives / total).unsqueeze(1)
        of_weight = of_parameters.get(head.module.weight)
        if of_weight is not None:
            if low == of_weight.dtype:
                of_weight.addmm_(products.t(), scaled * share, alpha=-1)
            else:
                of_weight.sub_(torch.mm(products.t(), (scaled * share).to(low)))
            of_weight.index_add_(0, targets, (scaled * derivatives.unsqueeze(1)).to(of_weight))
        of_bias = of_parameters.get(bias)
        if of_bias is not None:
            of_bias.sub_(torch.mm(products.t(), (scale * share).to(low)).squeeze(1))
            of_bias.index_add_(0, targets, (scale * derivatives).to(of_bias))
        of_states = (weight[targets].to(precise) - expected) * (scale * derivatives).unsqueeze(1)
        return of_states, log_normaliser - expected_logit

    return chosen - log_normaliser, pull_back


def _general_chunk(head: OutputHead, states: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, PullBack]:
    """For any other head: the derivative in the logits by hand, from there on autograd."""
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        logits = head(leaf, temperature)
    with torch.no_grad():
        log_p = torch.log_softmax(logits, 1)
        chosen = log_p.gather(1, targets.unsqueeze(1)).squeeze(1)

    def pull_back(derivatives: Tensor, of_parameters: dict[nn.Parameter, Tensor]) -> tuple[Tensor, Tensor]:
        p = log_p.exp()
        entropies = -torch.linalg.vecdot(p, log_p)
        derivatives = derivatives.unsqueeze(1)
        in_logits = (p * -derivatives).scatter_add_(1, targets.unsqueeze(1), derivatives)
        of_states, *shares = torch.autograd.grad(logits, [leaf, *of_parameters], in_logits)
        for total, share in zip(of_parameters.values(), shares, strict=True):
            total += share
        return of_states, entropies

    return chosen, pull_back
