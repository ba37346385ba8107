"""Sources of rewards in the form that TRL's GRPOTrainer calls: functions that return one float for each completion.

What a source says of single tokens, it keeps until the advantages are made of it.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedTokenizerBase

from ..nn.unpadding import padded
from ..ppo.completion_scorer import CompletionScorer
from ..ppo.prompts import DataCollatorForPrompts, Prompts
from ..ppo.reward_functions import returned_scores, reward_name
from ..reward_model.configuration import TokenRewardModelConfig
from ..reward_model.modeling import TokenRewardModel
from ..reward_model.readout import has_token_scores, require_trained_sequence_head
from ..reward_model.saved_adapter import has_token_head, read_config
from ..utils.loading import load_tokenizer, loading


class BatchIds(NamedTuple):
    """The tokens of a batch of completions, one list of each kind for each completion.

    Attributes:
        prompts (`list[list[int]]`):
            The prompt's ids.
        completions (`list[list[int]]`):
            The completion's ids, those of tools included.
        own (`list[list[int]]`):
            1 for tokens that the policy wrote, 0 for those of tools.
    """

    prompts: list[list[int]]
    completions: list[list[int]]
    own: list[list[int]]


class RewardSource:
    """A reward that may stand at tokens.

    Attributes:
        name (`str`):
            What logs and errors call it.
        scorer ([`~ppo.completion_scorer.CompletionScorer`]):
            Spreads the token rewards.
        shaping (`dict[str, Any]`):
            How it does so: arguments of [`~ppo.completion_scorer.CompletionScorer.spread`].
        token_rewards (`list[Tensor | None]` or `None`):
            What it said of the last batch: for each completion one number for each of its tokens, or `None` where it
            has no opinion. `None` if it gave one number for each completion.
        counts (`list[Tensor]` or `None`):
            Of a reward model, the [`~ppo.completion_scorer.RawScores.counts`] of each completion.
    """

    name: str
    scorer: CompletionScorer
    shaping: dict[str, Any]

    def __init__(self) -> None:
        self.token_rewards: list[Tensor | None] | None = None
        self.counts: list[Tensor] | None = None

    def function(self) -> Callable[..., Any]:
        """What TRL calls in its place."""
        raise NotImplementedError


class FunctionSource(RewardSource):
    """A function that returns, for each completion, a float, `None`, or one float for each of its tokens."""

    def __init__(self, call: Callable[..., Any]):
        super().__init__()
        self.call, self.name = call, reward_name(call)
        while isinstance(call, partial):
            call = call.func
        self._is_async = any(map(inspect.iscoroutinefunction, (call, type(call).__call__)))

    def function(self) -> Callable[..., Any]:
        async def later(**kwargs: Any) -> Any:
            return self._read(await self.call(**kwargs), kwargs["completion_ids"])

        def now(**kwargs: Any) -> Any:
            return self._read(self.call(**kwargs), kwargs["completion_ids"])

        reward: Callable[..., Any] = later if self._is_async else now
        reward.__name__ = self.name
        return reward

    def _read(self, returned: Any, completion_ids: list[list[int]]) -> Any:
        """One float or `None` for each completion; what was said of tokens is kept."""
        lengths = [len(ids) for ids in completion_ids]
        scores = returned_scores(returned, self.name, lengths, may_abstain=True)
        of_tokens = any(score is not None and score.ndim == 1 for score in scores)
        self.token_rewards = [*scores] if of_tokens else None
        return [None if score is None else float(score.sum()) for score in scores]


class ModelSource(RewardSource):
    """A reward model that scores tokens, prefixes, or whole completions by a sequence head of ours.

    TRL reads the sequence score of a completion's text, without the token that ended it. Our head is trained at that
    token, as heads of TRL's RewardTrainer are, and so it is read there, on the ids.

    Args:
        model (`nn.Module`):
            A [`TokenRewardModel`], an [`ImplicitReward`] or a token classifier with one label, on the device that it is
            to be read on.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer, where that is not the policy's.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None):
        super().__init__()
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.name = reward_name(model)
        self.ids: BatchIds | None = None  # the trainer says which, before TRL calls
        self.template: dict[str, Any] = {}  # what the policy's chat template gets beside messages, by column

    def function(self) -> Callable[..., Any]:
        def reward(prompts: list[Any], **kwargs: Any) -> list[float]:
            return self._score(prompts)

        reward.__name__ = self.name
        return reward

    def _score(self, prompts: list[Any]) -> list[float]:
        assert self.ids is not None
        if self.scorer.reward_processing_class is not None and not all(map(all, self.ids.own)):
            raise ValueError(
                f"The reward model '{self.name}' has another tokenizer than the policy, and reads completions as text. "
                "A text with the turns of tools has lost its roles: use a reward model with the policy's tokenizer."
            )
        device = next(self.model.parameters()).device
        batch = DataCollatorForPrompts(0)([{"input_ids": ids} for ids in self.ids.prompts])
        given = Prompts(batch["input_ids"].to(device), batch["attention_mask"].to(device))
        completion_ids, completion_mask = padded(self.ids.completions, device)
        rows = [{"prompt": prompt, **self.template} for prompt in prompts]
        scores = self.scorer.raw_scores(given, completion_ids, completion_mask, rows)
        if self.scorer.scores_completions:  # one number for each, which is taken as it is
            return scores.values.sum(1).tolist()
        own_tokens = [torch.tensor(own) for own in self.ids.own]

        def of_policy(values: Tensor) -> list[Tensor]:
            return [row[: len(own)].cpu() * own for row, own in zip(values, own_tokens, strict=True)]

        rewards, self.counts = of_policy(scores.values), of_policy(scores.counts)
        self.token_rewards = [*rewards]
        return [float(of_tokens.sum()) for of_tokens in rewards]


def load_source(
    reward: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    signal: str | None,
    init_kwargs: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> "RewardSource | None":
    """The source of rewards that a `reward_funcs` entry is, or `None` for those that TRL reads itself: sequence
    classifiers.

    Args:
        reward (`str`, `nn.Module` or `Callable`):
            The entry. A name or folder is loaded if its model scores tokens.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The entry of `reward_processing_classes`.
        signal (`str`, *optional*):
            The setting `reward_signal`.
        init_kwargs (`dict`, *optional*):
            What to load with.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with the model runs, where `init_kwargs` do not say.

    Raises:
        TypeError: If it is no reward.
        ValueError: If it is a language model, or a head that it would be read by is untrained.
    """
    if isinstance(reward, str):
        kwargs = {"trust_remote_code": trust_remote_code, **(init_kwargs or {}), "use_safetensors": True}
        with loading(reward, "reward model"):
            loaded = _load(reward, kwargs)
        if loaded is None:
            return None
        if tokenizer is None:
            tokenizer = load_tokenizer(reward, "tokenizer of the reward model", kwargs)
        return load_source(loaded, tokenizer, signal)
    if isinstance(reward, nn.Module):
        if signal == "sequence_score":
            require_trained_sequence_head(reward, "set `reward_signal='token_scores'`")
        scores_tokens = hasattr(reward, "config") and has_token_scores(reward)
        return ModelSource(reward, tokenizer) if scores_tokens else None
    if not callable(reward):
        raise TypeError(f"It must be a model, the name or folder of one, or a function, got {reward!r}.")
    return FunctionSource(reward)


def _load(path: str, kwargs: dict[str, Any]) -> nn.Module | None:
    """The model at a path, or `None` if it has no token scores. The adapter of a token reward model is merged."""
    config = read_config(path, kwargs)
    if not isinstance(config, PreTrainedConfig):
        if has_token_head(config):
            return TokenRewardModel.from_pretrained(path, **kwargs)
        if config.task_type in (None, "CAUSAL_LM") and not getattr(config, "modules_to_save", None):
            _refuse_language_model(path, "the adapter of a language model")
        return None
    if isinstance(config, TokenRewardModelConfig):
        return TokenRewardModel.from_pretrained(path, **kwargs)
    architectures = config.architectures or ()
    if any(name.endswith("ForTokenClassification") for name in architectures):
        return AutoModelForTokenClassification.from_pretrained(path, **kwargs)
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        _refuse_language_model(path, f"a language model ({', '.join(architectures)})")
    return None


def _refuse_language_model(path: str, what: str) -> None:
    raise ValueError(
        f"{path} is {what}: as a reward model it would have a new head, at random. Train it with TokenRewardTrainer, "
        "or with TRL's RewardTrainer, and name what that saves."
    )
