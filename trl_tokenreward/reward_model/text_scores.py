"""Scores of texts and of token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..data.vocabulary import check_sequences
from ..edits.alignment import blank_start
from ..nn.finite import not_finite
from ..nn.modules import evaluation_mode, max_positions, vocab_size
from ..nn.unpadding import padded_groups
from ..views.page import notebook_html
from ..views.scored_rows import ScoredRows
from ..views.scored_text import ScoredRow, ScoredText


class TextScores(NamedTuple):
    """
    Scores of one text, as [`TokenRewardModel.score_texts`] gives them. The three lists have one entry for each token of
    the text.

    Args:
        text (`str`):
            The text.
        score (`float`):
            Score of the whole sequence.
        token_scores (`list[float]`):
            Score of each token.
        tokens (`list[str]`):
            The tokens, as the tokenizer names them.
        spans (`list[tuple[int, int]]`):
            Characters of `text` that each token stands for, `text[start:end]`. Where the tokenizer cuts a character
            into several tokens, they have the same span.
    """

    text: str
    score: float
    token_scores: list[float]
    tokens: list[str]
    spans: list[tuple[int, int]]

    def _repr_html_(self) -> str:
        """The text in a notebook, its tokens coloured by their scores."""
        return notebook_html(ScoredRows("", [ScoredRow("", "", [scored_text(self)])]))


def scored_text(scores: TextScores) -> ScoredText:
    """The scores of one text in the form that views show. Characters that are in no token's span go to the token after
    them."""
    tokens, reached = [], 0
    for _, end in scores.spans:
        tokens.append(scores.text[reached : max(reached, end)])
        reached = max(reached, end)
    if tokens:
        tokens[-1] += scores.text[reached:]
    return ScoredText(tokens, {"score": scores.token_scores}, numbers={"sequence score": scores.score})


class IdsScores(NamedTuple):
    """Scores of one sequence of L token ids: of the whole, of each token, and of each prefix (see
    [`TokenRewardOutput`])."""

    score: float
    token_scores: list[float]
    prefix_scores: list[float]


def columns_of_text(
    offsets: Sequence[tuple[int, int]], prompt: str, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Columns of the tokens that stand for characters of `text`, and which: all that the tokenizer read was the prompt,
    the text and perhaps an EOS token."""
    offset = len(prompt)
    whole = prompt + text
    columns, spans = [], []
    for column, (start, end) in enumerate(offsets):
        if start == end:
            start = blank_start(whole, end)
        # What the tokenizer adds of its own, such as BOS, has the span (0, 0).
        if offset < end and start < len(whole):
            columns.append(column)
            spans.append((max(start, offset) - offset, min(end, len(whole)) - offset))
    return columns, spans


@torch.no_grad()
def scores_of_ids(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    batch_size: int = 8,
    name: str = "`model`",
    numbers: Sequence[int] | None = None,
) -> list[IdsScores]:
    """Scores of sequences of token ids, in order. Those of like length go through the model together.

    Args:
        model ([`TokenRewardModel`] or `PeftModel`):
            The model, or an adapter around one. Its mode, training or evaluation, is restored.
        sequences (`Sequence[Sequence[int]]`):
            Token ids, at least one in each.
        batch_size (`int`, *optional*, defaults to `8`):
            Sequences in one forward pass.
        name (`str`, *optional*):
            What errors call the model.
        numbers (`Sequence[int]`, *optional*):
            The rows that errors say the sequences are from. If `None`, they are counted from 0.

    Raises:
        ValueError: If the model cannot read a sequence, or a score is not a finite number.
    """
    check_sequences(sequences, vocab_size(model), max_positions(model), name, numbers)
    results: dict[int, IdsScores] = {}
    with evaluation_mode(model):
        for rows, ids, mask in padded_groups(sequences, batch_size, next(model.parameters()).device):
            output = model(input_ids=ids, attention_mask=mask)
            made = {
                "a sequence score": output.logits.squeeze(-1),
                "a token score": output.token_scores,
                "a prefix score": output.prefix_scores,
            }
            of_rows = rows if numbers is None else [numbers[row] for row in rows]
            if problem := not_finite(f"Scores of {name}", made, mask, of_rows):
                raise ValueError(problem)
            per_token = output.token_scores.tolist(), output.prefix_scores.tolist()
            for index, score, *both in zip(rows, output.logits.squeeze(-1).tolist(), *per_token, strict=True):
                results[index] = IdsScores(score, *(scores[: len(sequences[index])] for scores in both))
    return [results[index] for index in range(len(sequences))]
