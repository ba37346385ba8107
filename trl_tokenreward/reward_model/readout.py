"""Scores of reward models of every supported kind."""

from collections.abc import Callable

from torch import Tensor, nn

from ..nn.adapters import check_adapter
from ..nn.modules import backbone_of, is_causal, without_peft
from ..nn.unpadding import right_packed
from .implicit import ImplicitReward
from .modeling import TokenRewardModel


def architecture(model: nn.Module) -> str:
    return type(without_peft(model)).__name__


def has_token_scores(model: nn.Module) -> bool:
    """True if the model scores single tokens: a `TokenRewardModel`, an `ImplicitReward` or a token classifier."""
    scores_tokens = isinstance(without_peft(model), (TokenRewardModel, ImplicitReward))
    return scores_tokens or architecture(model).endswith("ForTokenClassification")


def has_sequence_score(model: nn.Module) -> bool:
    """True if the model scores whole texts: a `TokenRewardModel`, or a sequence classifier with a head named
    `score`."""
    base = without_peft(model)
    return isinstance(base, TokenRewardModel) or (
        architecture(model).endswith("ForSequenceClassification") and hasattr(base, "score")
    )


def has_trained_sequence_head(model: nn.Module) -> bool:
    """False if the model is a `TokenRewardModel` whose sequence head is untrained: all zero, or new and at random."""
    base = without_peft(model)
    return not isinstance(base, TokenRewardModel) or (base.sequence_head_is_trained and not base.sequence_head_is_new)


def require_trained_sequence_head(model: nn.Module, remedy: str) -> None:
    """Raise a `ValueError` unless [`has_trained_sequence_head`]."""
    if not has_trained_sequence_head(model):
        raise ValueError(
            "The sequence head is untrained, so a text's score means nothing. Train it with TokenRewardTrainer on rows "
            f"with two sides, or {remedy}."
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


def token_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, start: int = 0) -> Tensor:
    """The token scores of every column from `start` on, shape (B, L), float32, of a model for which
    [`has_token_scores`] holds. Those of the columns before it may be anything."""
    if isinstance(model, ImplicitReward):
        return model.token_scores(input_ids, attention_mask, start)
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


def check_scorer(model: nn.Module, argument: str) -> None:
    """Raise a `TypeError` or `ValueError` unless `model` is a supported reward (or value) model with one label."""
    check_adapter(model, argument)
    if not (has_token_scores(model) or has_sequence_score(model)):
        raise TypeError(
            f"`{argument}` is a {architecture(model)}. Pass a TokenRewardModel, an AutoModelForTokenClassification, "
            "an AutoModelForSequenceClassification of a decoder (with a head named `score`), or an ImplicitReward of "
            "causal language models."
        )
    if isinstance(model, ImplicitReward):
        return
    if without_peft(model).config.num_labels != 1:
        raise ValueError(
            f"`{argument}` has `num_labels={without_peft(model).config.num_labels}`; a score needs one: load it with "
            "`num_labels=1`."
        )
