"""Scores of reward models of every supported kind."""

from collections.abc import Callable

from accelerate.utils import is_peft_model
from torch import Tensor, nn

from ..nn.modules import backbone_of, is_causal, without_peft
from ..nn.unpadding import right_packed
from .modeling import TokenRewardModel


def architecture(model: nn.Module) -> str:
    return type(without_peft(model)).__name__


def has_token_scores(model: nn.Module) -> bool:
    """True if the model scores single tokens: a `TokenRewardModel` or a token classifier."""
    return isinstance(without_peft(model), TokenRewardModel) or architecture(model).endswith("ForTokenClassification")


def has_sequence_score(model: nn.Module) -> bool:
    """True if the model scores whole texts: a `TokenRewardModel`, or a sequence classifier with a head named
    `score`."""
    base = without_peft(model)
    return isinstance(base, TokenRewardModel) or (
        architecture(model).endswith("ForSequenceClassification") and hasattr(base, "score")
    )


def require_trained_sequence_head(model: nn.Module, remedy: str) -> None:
    """Raise a `ValueError` if the model is a `TokenRewardModel` whose sequence head is untrained."""
    base = without_peft(model)
    if isinstance(base, TokenRewardModel) and not base.sequence_head_is_trained:
        raise ValueError(
            "The sequence head is untrained: every text would score 0. Train it with TokenRewardTrainer on rows with "
            f"two sides, or {remedy}."
        )


def prefix_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The sequence head at every column: the potential phi_t of a reward model, the values of a value model.

    A sequence classifier's own forward pass is not used, since it finds the last token by `ids != pad_token_id`.

    Args:
        model (`nn.Module`):
            For which [`has_sequence_score`] holds, under PEFT or not.
        input_ids (`Tensor`):
            Shape (B, L).
        attention_mask (`Tensor`):
            Shape (B, L).

    Returns:
        `Tensor`: Shape (B, L), float32.
    """
    return _read_packed(model, input_ids, attention_mask, packed_prefix_scores)


def token_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The token head at every column, shape (B, L), float32, of a model for which [`has_token_scores`] holds."""
    return _read_packed(model, input_ids, attention_mask, packed_token_scores)


def packed_prefix_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """[`prefix_scores`] of right-packed rows. A causal model needs no `attention_mask` for them, see
    [`~nn.unpadding`]."""
    base = without_peft(model)
    if isinstance(base, TokenRewardModel):
        return base(input_ids=input_ids).prefix_scores
    mask = None if is_causal(base) else attention_mask
    hidden_states = backbone_of(base)(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    return base.score(hidden_states).squeeze(-1).float()


def packed_token_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """[`token_scores`] of right-packed rows."""
    base = without_peft(model)
    if isinstance(base, TokenRewardModel):
        return base(input_ids=input_ids).token_scores
    # A token classifier may be an encoder. Not all of those count positions from 0, so none is told positions.
    mask = None if is_causal(base) else attention_mask
    return base(input_ids=input_ids, attention_mask=mask).logits.squeeze(-1).float()


def _read_packed(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, read: Callable[..., Tensor]) -> Tensor:
    """`read` of right-packed rows, back in the columns that their tokens came from."""
    ids, columns = right_packed(input_ids, attention_mask)
    scores = read(model, ids, attention_mask.gather(1, columns))
    return scores.new_zeros(input_ids.shape).scatter(1, columns, scores)


def check_adapter(model: nn.Module, argument: str) -> None:
    """Raise a `ValueError` if `model` has an adapter of virtual tokens. The model under the wrapper does
    not know them, so every position would shift."""
    for config in model.peft_config.values() if is_peft_model(model) else ():
        if config.is_prompt_learning:
            raise ValueError(
                f"`{argument}` has an adapter of the type {config.peft_type.value}, which adds virtual tokens: use one "
                "that changes layers, such as LoRA."
            )


def check_scorer(model: nn.Module, argument: str) -> None:
    """Raise a `TypeError` or `ValueError` unless `model` is a supported reward (or value) model with one label."""
    check_adapter(model, argument)
    if not (has_token_scores(model) or has_sequence_score(model)):
        raise TypeError(
            f"`{argument}` is a {architecture(model)}. Pass a TokenRewardModel, an AutoModelForTokenClassification, or "
            "an AutoModelForSequenceClassification of a decoder (with a head named `score`)."
        )
    if without_peft(model).config.num_labels != 1:
        raise ValueError(
            f"`{argument}` has `num_labels={without_peft(model).config.num_labels}`; a score needs one: load it with "
            "`num_labels=1`."
        )
