"""Implicit rewards: what a language model says of a token, beside its reference."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..nn.adapters import check_adapter, reference_adapter
from ..nn.lm_head import logps_at
from ..nn.modules import check_own_forward, max_positions, vocab_size, without_peft
from ..nn.unpadding import right_packed
from .modeling import TokenRewardOutput


# What TRL calls the copy of an adapter that DPO goes on from.
_REFERENCE = "ref"


class ImplicitReward(nn.Module):
    r"""
    The reward of each token that a language model implies by what it has learned beyond its reference,

    $$ r_t = \beta \, \bigl( \log \pi(y_t \mid x, y_{<t}) - \log \pi_\mathrm{ref}(y_t \mid x, y_{<t}) \bigr) $$

    Of a model that was trained with DPO from the reference, with the same $\beta$, the sum over a completion is the
    reward that DPO has fitted to the preferences (Rafailov et al., 2023, equation 5; as the rewards of tokens: RTO,
    Zhong et al., 2024, https://huggingface.co/papers/2404.18922, and PRIME, Cui et al., 2025,
    https://huggingface.co/papers/2502.01456). Of a teacher, it is the reward of on-policy distillation.

    It is a reward model as others are: `reward_model` of [`FineGrainedPPOTrainer`], one of the `reward_funcs` of
    [`FineGrainedGRPOTrainer`], or the model of a [`TokenScorer`]. Where its tokenizer is not the policy's, pass the
    tokenizer too, as for others. Both models are put in evaluation mode and get no gradients. Log-probabilities are at
    temperature 1.

    Args:
        model ([`~transformers.PreTrainedModel`] or `PeftModel`):
            A causal language model.
        ref_model ([`~transformers.PreTrainedModel`] or `PeftModel`, *optional*):
            Its reference, with the same tokenizer. If `None`, `model` without its adapter or, where DPO went on with an
            adapter, with the copy of it that TRL names `"ref"`: one base model in memory serves as both.
        beta (`float`, *optional*, defaults to `0.1`):
            The factor, that of DPO.

    Raises:
        TypeError: If one of the models is no causal language model.
        ValueError: If the reference is missing or is the model itself, the vocabularies differ, several adapters are
            active beside an adapter `"ref"`, or `beta` is not positive and finite.
    """

    def __init__(
        self,
        model: "PreTrainedModel | nn.Module",
        ref_model: "PreTrainedModel | nn.Module | None" = None,
        beta: float = 0.1,
    ):
        super().__init__()
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not (0 < beta < math.inf):
            raise ValueError(f"`beta` must be a positive, finite number, got {beta!r}.")
        _check_language_model(model, "model")
        if ref_model is None and not is_peft_model(model):
            raise ValueError("`ref_model` is required, unless `model` has an adapter: its base is the reference then.")
        if ref_model is not None:
            _check_language_model(ref_model, "ref_model")
            _check_reference(model, ref_model)
        self.model, self.ref_model, self.beta = model, ref_model, float(beta)
        self._adapters = _trained_and_reference(model) if ref_model is None else None
        self.requires_grad_(False).eval()

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of that of the two models that reads fewer positions."""
        models = [self.model] if self.ref_model is None else [self.model, self.ref_model]
        return without_peft(min(models, key=lambda model: max_positions(model) or math.inf)).config

    def get_input_embeddings(self) -> nn.Module:
        """Those of the model."""
        return without_peft(self.model).get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TokenRewardOutput:
        """[`~ImplicitReward.token_scores`] of a batch in the form of a [`TokenRewardModel`]'s, with the sums up to each
        column as prefix scores."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        scores = self.token_scores(input_ids, attention_mask)
        return TokenRewardOutput(
            logits=scores.sum(1, keepdim=True), token_scores=scores, prefix_scores=scores.cumsum(1)
        )

    @torch.no_grad()
    def token_scores(self, input_ids: Tensor, attention_mask: Tensor, start: int = 0) -> Tensor:
        """The rewards of tokens, each given all tokens before it.

        Args:
            input_ids, attention_mask (`Tensor`):
                Shape (B, L), the padding anywhere.
            start (`int`, *optional*, defaults to `0`):
                The first column whose rewards are wanted. Those before cost no logits.

        Returns:
            `Tensor`: Shape (B, L), float32: 0 before `start`, in the padding, and for the first token of a row, which
            neither model predicts.
        """
        wanted = attention_mask.bool().clone()
        wanted[:, :start] = False
        ids, columns = right_packed(input_ids, attention_mask)
        wanted = wanted.gather(1, columns)
        wanted[:, 0] = False
        places = wanted.flatten().nonzero().squeeze(1)
        log_ratios = logps_at(self.model, ids, places, 1.0)
        with self._reference() as reference:
            log_ratios -= logps_at(reference, ids, places, 1.0)
        packed = log_ratios.new_zeros(ids.shape).masked_scatter(wanted, self.beta * log_ratios).float()
        return packed.new_zeros(input_ids.shape).scatter(1, columns, packed)

    def _reference(self) -> AbstractContextManager[nn.Module]:
        if self._adapters is None:
            return nullcontext(self.ref_model)
        return reference_adapter(self.model, *self._adapters)


def _check_language_model(model: nn.Module, argument: str) -> None:
    base = without_peft(model) if isinstance(model, nn.Module) else model
    is_causal_lm = isinstance(base, PreTrainedModel) and base.get_output_embeddings() is not None
    if not is_causal_lm or not base.can_generate() or base.config.is_encoder_decoder:
        raise TypeError(
            f"`{argument}` is a {type(base).__name__}, but implicit rewards are read off the language modelling head "
            "of a causal language model: load it with AutoModelForCausalLM."
        )
    check_adapter(model, argument)
    check_own_forward(model, argument)


def _trained_and_reference(model: nn.Module) -> tuple[str, str] | tuple[()]:
    """The names of the adapter that DPO has trained and of its reference; none where DPO began without an adapter."""
    if _REFERENCE not in model.peft_config:
        return ()
    if len(model.active_adapters) != 1 or model.active_adapters == [_REFERENCE]:
        raise ValueError(
            f"`model` has an adapter {_REFERENCE!r}, the reference of DPO, and {model.active_adapters} active: "
            "activate the one that was trained with `model.set_adapter`, or pass a `ref_model`."
        )
    return model.active_adapters[0], _REFERENCE


def _check_reference(model: nn.Module, ref_model: nn.Module) -> None:
    if without_peft(model) is without_peft(ref_model):
        raise ValueError(
            "`model` and `ref_model` have one model below them, so every reward would be 0: pass `ref_model=None` for "
            "the model without its adapter, or load the reference by itself."
        )
    size, ref_size = vocab_size(model), vocab_size(ref_model)
    if size != ref_size:
        raise ValueError(
            f"`model` has a vocabulary of {size} and `ref_model` of {ref_size}, but both must have one tokenizer. If "
            "they do, and one of them is only padded further, resize the smaller with `resize_token_embeddings`."
        )
