"""Scores of completions, from reward models of every supported kind and from Python functions."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import regex
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.formats import closing_ids, prompt_text
from ..data.tokens import TextTokenizer, continuation_text
from ..data.vocabulary import warn_of_other_tokenizer
from ..edits.alignment import SENTENCE_END
from ..nn.masked import zero_masked
from ..nn.modules import max_positions, vocab_size, without_peft
from ..nn.unpadding import groups_by_length
from ..reward_model.implicit import ImplicitReward
from ..reward_model.modeling import TokenRewardModel
from ..reward_model.readout import (
    architecture,
    check_scorer,
    has_sequence_score,
    has_token_scores,
    has_trained_sequence_head,
    prefix_scores,
    require_trained_sequence_head,
    token_scores,
)
from .functional import joint_log_odds, place_at_last, potential_differences, redistribute, shape_scores
from .prompts import Prompts, join, real_ids
from .reward_functions import RewardFunction, returned_scores, reward_name
from .reward_settings import RewardKind, check_density


# A token that ends a sentence, with the quotation marks and brackets that may close after it, or a line.
_ENDS_SENTENCE = regex.compile(rf"{SENTENCE_END}[\p{{Pe}}\p{{Pf}}\"']*\s*$|\n")
# Columns that reward functions get under another name, or not at all.
PROMPT_COLUMNS = ("prompt", "input_ids")
_INCOMPLETE = "\ufffd"  # what a part of a character decodes to


class RawScores(NamedTuple):
    """Scores of B completions of T tokens, as the reward gives them.

    Attributes:
        values (`Tensor`):
            Shape (B, T), 0 where the mask is 0. The sum of a row is the completion's score; of log-odds that come
            through another tokenizer, it is no more than near the reward model's own sum.
        signal (`str`):
            `"token_scores"` or `"sequence_score"`: which of the two the values are made of.
        counts (`Tensor`):
            Shape (B, T): how many of the reward model's tokens each value is of; 1 for each of the completion, where it
            reads the policy's own tokens.
    """

    values: Tensor
    signal: str
    counts: Tensor


def worst_of(scores: Sequence[RawScores]) -> RawScores:
    """The smallest of several rewards' scores at each token, among those that have one there."""
    counts = torch.stack([of_one.counts for of_one in scores])
    values = torch.where(counts > 0, torch.stack([of_one.values for of_one in scores]), torch.inf)
    least, which = values.min(0)
    counts = counts.gather(0, which.unsqueeze(0)).squeeze(0)
    return scores[0]._replace(values=zero_masked(least, counts), counts=counts)


class CompletionScorer:
    """Scores completions and spreads the scores over their tokens.

    Args:
        reward (`nn.Module` or `Callable`):
            A reward model, or a function. A function is called with the keyword arguments `prompts`, `completions`
            (texts, or messages where the prompts are messages), `completion_ids` and the data set's other columns, each
            a list with one entry a completion; it returns one float for each completion, or one list of floats for each
            completion with one float for each of its tokens.
        processing_class (`PreTrainedTokenizerBase`):
            Tokenizer of the policy.
        reward_processing_class (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the reward model where it is another one. Completions are then read as text, and the score of
            each of its tokens goes to the policy's token in which it ends; of several log-odds, those that all of
            these tokens are left. Messages get its own chat template where it has one.
        signal (`str`, *optional*):
            `"token_scores"`, `"sequence_score"` or `None` for what the reward offers.
        density (`str`, *optional*):
            `"token"`, `"sentence"`, `"sequence"`, `"potential"`, or `None` for `"token"` with token scores and
            `"sequence"` with a sequence score. See [`FineGrainedPPOConfig`].
        batch_size (`int`):
            Rows in one forward pass.
        stop_token_id (`int`, *optional*):
            The policy's token that ends a completion, beside EOS.
    """

    def __init__(
        self,
        reward: nn.Module | RewardFunction,
        processing_class: PreTrainedTokenizerBase,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        signal: str | None = None,
        density: str | None = None,
        batch_size: int = 64,
        stop_token_id: int | None = None,
    ):
        self.reward = reward
        self.stop_token_id = stop_token_id
        self.processing_class = processing_class
        self.reward_processing_class = _other_tokenizer(processing_class, reward_processing_class)
        self.batch_size = batch_size
        self._sentence_end_ids: Tensor | None = None
        self._incomplete_ids: Tensor | None = None
        self._returned_before: str | None = None  # by a reward function, to tell when it changes
        if isinstance(reward, nn.Module):
            check_scorer(reward, "reward_model")
            signal = signal or ("sequence_score" if density == "potential" else None)
            signal = signal or ("token_scores" if has_token_scores(reward) else "sequence_score")
            offered = {"token_scores": has_token_scores(reward), "sequence_score": has_sequence_score(reward)}
            if not offered[signal]:
                given = f"reward_signal={signal!r}" if density != "potential" else "reward_density='potential'"
                needed = {"token_scores": "token scores", "sequence_score": "a sequence score"}[signal]
                raise ValueError(f"`{given}` needs {needed}; {architecture(reward)} has none.")
            check_density(signal, density)
            own_tokenizer = reward_processing_class or processing_class
            warn_of_other_tokenizer(own_tokenizer, vocab_size(reward), "the reward model")
            base = without_peft(reward)
            if signal == "token_scores" and isinstance(base, TokenRewardModel) and not base.token_head_is_trained:
                other = ", or set `reward_signal='sequence_score'`" if has_trained_sequence_head(reward) else ""
                raise ValueError(
                    "The reward model's token head is untrained: every token would score 0. Train it with "
                    f"TokenRewardTrainer{other}."
                )
            if signal == "sequence_score":
                require_trained_sequence_head(reward, "set `reward_signal='token_scores'`")
        elif callable(reward):
            if signal is not None:
                raise ValueError("`reward_signal` has no effect on a reward function: what it returns decides.")
            if density == "potential":
                raise ValueError(
                    "`reward_density='potential'` needs a reward model that scores prefixes, not a function."
                )
            if reward_processing_class is not None:
                raise ValueError("`reward_processing_class` has no effect on a reward function, which reads texts.")
        else:
            raise TypeError(
                f"`reward_model` must be a model or a function, got {type(reward).__name__}. A model is loaded by its "
                "name with `from_pretrained` of its class, such as TokenRewardModel."
            )
        self.signal = signal  # `None` for a function: each call's `RawScores` say what it returned
        self.density = density

    @property
    def kind(self) -> RewardKind:
        """What the rewards are, which decides the defaults of their settings."""
        if not isinstance(self.reward, nn.Module) or self.signal != "token_scores":
            return "other"
        return "log_ratios" if isinstance(self.reward, ImplicitReward) else "log_odds"

    # Scoring has two halves. The first scores this process's completions; then all processes gather their scores; the
    # second shapes and spreads the scores of the whole batch.

    @torch.no_grad()
    def raw_scores(
        self, prompts: Prompts, completion_ids: Tensor, completion_mask: Tensor, rows: list[dict[str, Any]]
    ) -> RawScores:
        """Raw scores of completions, decomposed over their tokens."""
        if not isinstance(self.reward, nn.Module):
            return self._call_function(prompts, completion_ids, completion_mask, rows)
        score = self._score_ids if self.reward_processing_class is None else self._score_text
        scores, counts = torch.zeros((2, *completion_mask.shape), device=completion_ids.device)
        lengths = prompts.mask.sum(1) + completion_mask.sum(1)
        for group in groups_by_length(lengths, self.batch_size):
            of_group = (Prompts(*(x[group] for x in prompts)), completion_ids[group], completion_mask[group])
            with _explained(self.reward):
                scores[group], counts[group] = score(*of_group, [rows[i] for i in group.tolist()])
        return RawScores(scores, str(self.signal), counts)

    def spread(self, scores: RawScores, completion_ids: Tensor, completion_mask: Tensor, **shaping: Any) -> Tensor:
        """Shape raw scores of the whole batch (see [`~ppo.functional.shape_scores`]) and spread them as `density` says.

        Returns:
            `Tensor`: Shape (B, T).
        """
        shaped = shape_scores(scores.values, completion_mask, signal=scores.signal, counts=scores.counts, **shaping)
        density = self._density_of(scores.signal)
        if density == "potential":  # the raw scores are where they belong
            return shaped
        ends = self._sentence_ends(completion_ids) if density == "sentence" else None
        return redistribute(shaped, completion_mask, density, ends)

    def places(self, scores: RawScores, completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """Where [`~CompletionScorer.spread`] puts rewards: shape (B, T), 1 at tokens that carry one."""
        density = self._density_of(scores.signal)
        if density == "token":
            return completion_mask.bool() & (scores.counts > 0)
        if density == "potential":
            return completion_mask.bool()
        last = place_at_last(torch.ones_like(completion_mask[:, 0]), completion_mask).bool()
        if density == "sequence":
            return last
        return last | (self._sentence_ends(completion_ids) & completion_mask.bool())

    def _density_of(self, signal: str) -> str:
        return self.density or ("token" if signal == "token_scores" else "sequence")

    def _score_ids(
        self, prompts: Prompts, completion_ids: Tensor, completion_mask: Tensor, rows: list[dict[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        ids, mask = self._closed(completion_ids, completion_mask, rows)
        scores = self._decompose(*join(prompts, ids, mask), prompts.ids.shape[1], mask)
        if mask is not completion_mask:
            # The last token gets what the template's tokens got, so that the sum is the score at the end.
            own = zero_masked(scores[:, : completion_mask.shape[1]], completion_mask)
            scores = own + place_at_last(scores.sum(1) - own.sum(1), completion_mask)
        return scores, completion_mask.float()

    @property
    def scores_completions(self) -> bool:
        """Whether a reward model gives one score for each completion, read at its end."""
        return self.signal == "sequence_score" and self.density != "potential"

    @cached_property
    def _closing_ids(self) -> list[int]:
        """What the reader's chat template puts after the EOS of an answer, if scores are read there."""
        reader = self.processing_class if self.reward_processing_class is None else self.reward_processing_class
        return closing_ids(reader) if self.signal == "sequence_score" else []

    def _closed(self, ids: Tensor, mask: Tensor, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Completions with what the chat template puts after the EOS of an answer, such as the line break of ChatML: it
        ends the rows on which a sequence score is trained, and so the score is read there."""
        if not self._closing_ids:
            return ids, mask
        ended = ids.gather(1, (mask.sum(1) - 1).clamp(min=0).long().unsqueeze(1)) == self.processing_class.eos_token_id
        templated = torch.tensor([[isinstance(row.get("prompt"), list)] for row in rows], device=ids.device)
        open_end = (ended & templated).long()
        for token in self._closing_ids:
            ids, mask = (nn.functional.pad(x, (0, 1)) for x in (ids, mask))
            place = mask.sum(1, keepdim=True).long()
            ids = ids.scatter(1, place, torch.where(open_end.bool(), token, ids.gather(1, place)))
            mask = mask.scatter(1, place, open_end.to(mask.dtype))
        return ids, mask

    def _decompose(self, input_ids: Tensor, attention_mask: Tensor, width: int, completion_mask: Tensor) -> Tensor:
        if self.signal == "token_scores":
            scores = token_scores(self.reward, input_ids, attention_mask, start=width)[:, width:]
            return zero_masked(scores, completion_mask)
        potentials = prefix_scores(self.reward, input_ids, attention_mask)[:, width:]
        if self.density != "potential":
            last = (completion_mask.sum(1) - 1).long().unsqueeze(1)
            return place_at_last(potentials.gather(1, last).squeeze(1), completion_mask)
        return potential_differences(potentials, completion_mask)

    def _score_text(
        self, prompts: Prompts, completion_ids: Tensor, completion_mask: Tensor, rows: list[dict[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        """Like `_score_ids`, through text, for a reward model with another tokenizer."""
        tokens = zip(real_ids(*prompts), real_ids(completion_ids, completion_mask), strict=True)
        encoded = [self._encode(*ids, row) for ids, row in zip(tokens, rows, strict=True)]
        width = max(len(prompt) for prompt, _, _ in encoded)
        length = max(len(completion) for _, completion, _ in encoded)
        input_ids = torch.zeros(len(encoded), width + length, dtype=torch.long, device=completion_ids.device)
        attention_mask = torch.zeros_like(input_ids)
        owner_ids = torch.full((len(encoded), length), -1, device=completion_ids.device)
        for row, (prompt, completion, owners) in enumerate(encoded):
            input_ids[row, width - len(prompt) : width + len(completion)] = torch.tensor(prompt + completion)
            attention_mask[row, width - len(prompt) : width + len(completion)] = 1
            owner_ids[row, : len(owners)] = torch.tensor(owners)
        scores = self._decompose(input_ids, attention_mask, width, attention_mask[:, width:])
        joint, counts = joint_log_odds(scores, owner_ids, completion_mask.shape[1])
        if self.kind == "log_odds":
            return joint, counts
        return torch.zeros_like(joint).scatter_add(1, owner_ids.clamp(min=0), scores), counts

    def _encode(
        self, prompt_ids: list[int], ids: list[int], row: dict[str, Any]
    ) -> tuple[list[int], list[int], list[int]]:
        """The reward model's tokens of a prompt and of a completion, and for each of the latter the place of the
        policy's token that gets its score."""
        tokenizer: Any = self.reward_processing_class
        last = len(ids) - 1
        prompt = self._decode(prompt_ids)
        completion = continuation_text(self.processing_class, prompt_ids, ids)
        lost = len(completion) - len(self._decode(ids))
        templated = isinstance(row.get("prompt"), list) and tokenizer.chat_template is not None
        if templated:
            prompt, _ = prompt_text(row, tokenizer)
        start = len(prompt)
        # The policy's tokens end where the text of the tokens up to them ends.
        # A character of several tokens is there with the last of them; until then it decodes to replacement characters.
        texts = [self._decode(ids[: t + 1]).rstrip(_INCOMPLETE) for t in range(len(ids))]
        ends = [start + lost + len(text) for text in texts]
        has_ended = ids[-1] in (self.processing_class.eos_token_id, self.stop_token_id)
        reward_ids, spans = TextTokenizer(tokenizer)(prompt + completion, rendered=templated, is_open=not has_ended)
        first = next((i for i, (_, end) in enumerate(spans) if end > start), len(spans))
        # Tokens that the tokenizer appends, such as EOS, have no text: the last token gets their score.
        owners = [min(bisect_left(ends, e), last) if s < e else last for s, e in spans[first:]]
        if has_ended and tokenizer.eos_token_id is not None:
            if reward_ids[-1:] != [tokenizer.eos_token_id]:
                reward_ids, owners = [*reward_ids, tokenizer.eos_token_id], [*owners, last]
            if templated:
                reward_ids, owners = [*reward_ids, *self._closing_ids], [*owners, *[last] * len(self._closing_ids)]
        if not reward_ids:
            raise ValueError("A completion and its prompt are no text, so the reward model has nothing to read.")
        if not owners:  # The completion is no text to the reward model; the prompt's last token carries the score.
            first, owners = len(reward_ids) - 1, [last]
        return reward_ids[:first], reward_ids[first:], owners

    def _call_function(
        self, prompts: Prompts, completion_ids: Tensor, completion_mask: Tensor, rows: list[dict[str, Any]]
    ) -> RawScores:
        ids = real_ids(completion_ids, completion_mask)
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in PROMPT_COLUMNS}
        if "prompt" in rows[0]:
            texts = [row["prompt"] for row in rows]
        else:
            texts = [self._decode(i) for i in real_ids(*prompts)]
        completions: list[Any] = [self._decode(i) for i in ids]
        if isinstance(texts[0], list):
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        reward: Any = self.reward
        returned = reward(prompts=texts, completions=completions, completion_ids=ids, **columns)
        values: list[Any] = returned_scores(returned, reward_name(reward), [len(tokens) for tokens in ids])
        signal = "token_scores" if values[0].ndim == 1 else "sequence_score"
        if self._returned_before not in (None, signal):
            raise ValueError("The reward function changed between one float and one float per token.")
        self._returned_before = signal
        if signal == "sequence_score":
            if self.density in ("token", "sentence"):
                raise ValueError(
                    f"`reward_density={self.density!r}` needs a reward function that returns one float per token."
                )
            totals = torch.stack(values).to(completion_ids.device)
            return RawScores(place_at_last(totals, completion_mask), signal, completion_mask.float())
        scores = torch.zeros(completion_mask.shape, device=completion_ids.device)
        for row, of_tokens in enumerate(values):
            scores[row, : len(of_tokens)] = of_tokens
        return RawScores(scores, signal, completion_mask.float())

    def _decode(self, ids: list[int]) -> str:
        return self.processing_class.decode(ids, skip_special_tokens=True)

    def _sentence_ends(self, completion_ids: Tensor) -> Tensor:
        """Shape (B, T), 1 for the tokens that end a sentence."""
        if self._sentence_end_ids is None or self._incomplete_ids is None:
            pieces = self.processing_class.batch_decode([[i] for i in range(len(self.processing_class))])
            of_ends, of_parts = [_ENDS_SENTENCE.search(p) for p in pieces], [_INCOMPLETE in p for p in pieces]
            self._sentence_end_ids = torch.tensor([end is not None for end in of_ends]).nonzero().squeeze(1)
            self._incomplete_ids = torch.tensor(of_parts).nonzero().squeeze(1)
        ends = torch.isin(completion_ids, self._sentence_end_ids.to(completion_ids.device))
        incomplete = torch.isin(completion_ids, self._incomplete_ids.to(completion_ids.device))
        # Of a character in several tokens, the last completes the sentence.
        start: tuple[int, int] | None = None
        for row, column in incomplete.nonzero().tolist():
            if start is None or start[0] != row or not incomplete[row, start[1] : column].all():
                start = row, column
            text = self.processing_class.decode(completion_ids[row, start[1] : column + 1])
            ends[row, column] = _ENDS_SENTENCE.search(text) is not None
            if not text.endswith(_INCOMPLETE):
                start = None
        return ends


@contextmanager
def _explained(reward: nn.Module) -> Iterator[None]:
    """Says of an index that is out of range, as of a position table, what may be wrong. A model may read further than
    its configuration says, so nothing is refused before."""
    try:
        yield
    except IndexError as error:
        raise ValueError(
            f"The reward model cannot read a completion: {error}. It has {vocab_size(reward)} embeddings and "
            f"{max_positions(reward)} positions: use its own tokenizer, and shorten prompts or completions."
        ) from error


def _other_tokenizer(
    policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase | None:
    if reward is None or reward is policy or reward.get_vocab() == policy.get_vocab():
        return None
    if not reward.is_fast:
        raise ValueError("`reward_processing_class` must be a fast tokenizer: scores are mapped through offsets.")
    return reward
