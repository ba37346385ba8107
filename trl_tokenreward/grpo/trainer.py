"""GRPO whose rewards, and advantages, are of single tokens."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from .._trl import get_config_model_id, get_dataset_column_names
from ..data.formats import check_dataset
from ..data.vocabulary import warn_of_other_tokenizer
from ..nn.finite import check_weights
from ..nn.modules import vocab_size
from ..nn.precision import warn_of_narrow_weights
from ..nn.unpadding import padded, right_packed
from ..ppo.completion_log import GRPO_FOLDER, CompletionLog
from ..ppo.completion_scorer import CompletionScorer, RawScores, worst_of
from ..ppo.functional import hold_mean_length, mean_length, place_at_last, repeated_ngrams
from ..ppo.models import check_not_trained, check_vocabularies
from ..ppo.reward_functions import check_call
from ..ppo.reward_hacking import RewardHackingCallback
from ..ppo.rewards import as_list, check_ensemble
from ..utils.checkpoints import begin_checkpoint, checkpoint_to_resume
from ..utils.model_card import correct_card, policy_example
from ..utils.paper import PAPER
from ..utils.text import distinct
from ..utils.validation import check_devices, check_tokenizer
from .config import FineGrainedGRPOConfig
from .functional import group_advantages
from .prompts import check_prompts
from .sources import BatchIds, FunctionSource, ModelSource, RewardSource, load_source


_STATE_FILE = "held_length.json"
# Columns that TRL does not give to reward functions under these names, and what it gives them beside the columns.
_RENAMED = ("prompt", "completion", "completion_ids")
_FROM_TRL = ("trainer_state", "log_extra", "log_metric")


class FineGrainedGRPOTrainer(GRPOTrainer):
    """
    Trainer for Group Relative Policy Optimization with rewards, and advantages, of single tokens.

    It replaces TRL's `GRPOTrainer` in a script. With rewards of whole completions alone it does what `GRPOTrainer`
    does. Where a reward is of single tokens, each token gets an advantage of its own, as `advantage_estimator` says;
    rewards of whole completions among them stand on the last token. `hold_length` works with either.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        reward_funcs (`str`, `nn.Module`, `Callable`, or a list of them):
            All that `GRPOTrainer` takes, and: a [`TokenRewardModel`] or a token classifier with one label, as a model,
            a name on the Hub or a folder; and functions that return a list of floats for each completion, one for each
            token of its `completion_ids`, instead of one float.
        args ([`FineGrainedGRPOConfig`], *optional*):
            Configuration. TRL's own `GRPOConfig` is taken too.
        train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config, peft_config, tools,
        rollout_func, environment_factory:
            As in `GRPOTrainer`.
        reward_processing_classes ([`~transformers.PreTrainedTokenizerBase`] or a list of them, *optional*):
            As in `GRPOTrainer`. For a model that scores tokens: its tokenizer, where that is not the policy's. One that
            is given by folder or name brings its own.

    Raises:
        ValueError: If a token head is untrained, if a setting does not go with token rewards or has no effect, if the
            tokenizer has no EOS, or if the data have no row, or a row no prompt that fits in the models' positions. The
            error names the row.
        TypeError: If a reward, a tokenizer or a data set is of another type, or a reward function does not take the
            columns.
    """

    args: FineGrainedGRPOConfig

    _tag_names = ["trl", "grpo", "fine-grained-grpo"]
    _name = "FineGrainedGRPO"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | nn.Module",
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = FineGrainedGRPOConfig(f"{name.split('/')[-1]}-FineGrainedGRPO")
        elif not isinstance(args, FineGrainedGRPOConfig):
            args = FineGrainedGRPOConfig.from_grpo_config(args)
        if train_dataset is not None and kwargs.get("environment_factory") is None:
            check_dataset(train_dataset, "train")
            columns = get_dataset_column_names(train_dataset)
            if "prompt" not in columns:
                raise ValueError(f"The training data need a column 'prompt'; they have {sorted(columns)}.")
        rewards = [] if reward_funcs is None else as_list(reward_funcs)
        tokenizers = reward_processing_classes
        if not isinstance(tokenizers, (list, tuple)):
            tokenizers = [tokenizers] * len(rewards)
        if len(tokenizers) != len(rewards) and rewards:
            raise ValueError(f"There are {len(rewards)} `reward_funcs`, but {len(tokenizers)} processing classes.")
        if rewards:
            args.check_number_of_rewards(len(rewards))
        self.sources: list[RewardSource | None] = []
        for index, (reward, tokenizer) in enumerate(zip(rewards, tokenizers, strict=False)):
            if tokenizer is not None:
                check_tokenizer(tokenizer, f"reward_processing_classes[{index}]")
            if not isinstance(model, str):
                check_not_trained(reward, model, f"reward_funcs[{index}]")
            signal = args.of_reward(index).reward_signal
            try:
                loaded_with = args.model_init_kwargs, args.trust_remote_code
                self.sources.append(load_source(reward, tokenizer, signal, *loaded_with))
            except TypeError as error:
                raise TypeError(f"`reward_funcs[{index}]`: {error}") from error
            if self.sources[-1] is None:
                _check_own_settings(args, index)
        named = [source for source in self.sources if source is not None]
        for own, name in zip(named, distinct([own.name for own in named]), strict=True):
            own.name = name
        given = zip(rewards, self.sources, strict=True)
        super().__init__(
            model=model,
            reward_funcs=[reward if source is None else source.function() for reward, source in given],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=[
                tokenizer if source is None else None
                for tokenizer, source in zip(tokenizers, self.sources, strict=False)
            ],
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        check_devices(self.args)
        if self._tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no EOS token, by which TRL tells the end of a completion: set `eos_token`."
            )
        warn_of_other_tokenizer(self._tokenizer, vocab_size(self.model), "`model`")
        warn_of_narrow_weights({"model": self.model}, self.accelerator)
        # TRL adds the rewards that environments own, which are of whole completions.
        self.sources += [None] * (len(self.reward_funcs) - len(self.sources))
        if not any(isinstance(callback, RewardHackingCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(RewardHackingCallback())
        self._target_length = args.target_length
        self.completion_log = None
        if args.log_completions:
            self.completion_log = CompletionLog(self, args.num_completions_to_print or 8, GRPO_FOLDER)
            self.add_callback(self.completion_log)
        for index, source in enumerate(self.sources):
            try:
                self._prepare_source(source, index)
            except ValueError as error:
                if len(self.sources) == 1:
                    raise
                raise ValueError(f"`reward_funcs[{index}]`: {error}") from error
        scorers = [None if source is None else source.scorer for source in self.sources]
        if args.reward_aggregation == "min":
            check_ensemble([None if s is None or s.scores_completions else s for s in scorers], "reward_funcs")
        if any(isinstance(source, ModelSource) and not source.scorer.scores_completions for source in self.sources):
            args.check_token_advantages()
        if all(scorer is None or scorer.scores_completions for scorer in scorers):
            args.check_no_token_settings()
        if kwargs.get("environment_factory") is None:  # or an environment adds to the prompt
            self._check_prompts(train_dataset, eval_dataset, kwargs.get("rollout_func") is None)

    def _check_prompts(self, train_dataset: Any, eval_dataset: Any, tokenized: bool) -> None:
        readers = {"model": self.model}
        for index, source in enumerate(self.sources):
            if isinstance(source, ModelSource) and source.scorer.reward_processing_class is None:
                readers[f"reward_funcs[{index}]"] = source.model
        # A processor's ids depend on images too, which are not loaded for this.
        tokenize = (lambda prompt: self._tokenize_prompts([prompt])[0][0]) if tokenized and not self._is_vlm else None
        evaluated = {"eval": eval_dataset}
        if isinstance(eval_dataset, dict):
            evaluated = {f"eval_{name}": part for name, part in eval_dataset.items()}
        settings = tokenize, readers, self.args.max_completion_length, not self.args.disable_tqdm
        for name, dataset in {"train": train_dataset, **evaluated}.items():
            if dataset is not None:
                check_prompts(dataset, name, *settings)

    def _prepare_source(self, source: RewardSource | None, index: int) -> None:
        if source is None:
            return
        args, batch_size = self.args.of_reward(index), self.args.per_device_train_batch_size
        if isinstance(source, ModelSource):
            if self.is_deepspeed_enabled:
                raise ValueError(
                    "A reward model that scores tokens does not run under DeepSpeed in GRPO. Use DDP or FSDP2, or a "
                    "function that asks a served model."
                )
            # As TRL prepares the reward models that it reads itself.
            source.model = self.accelerator.prepare_model(source.model, evaluation_mode=True, device_placement=True)
            given = source.model, self._tokenizer, source.tokenizer, args.reward_signal, args.reward_density
            source.scorer = CompletionScorer(*given, batch_size)
            if source.scorer.scores_completions:
                _check_own_settings(self.args, index)
            source.template = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
            source.template |= {"tools": self.tools} if self.tools else {}
            if source.scorer.reward_processing_class is None:
                check_vocabularies(self.model, {f"reward_funcs[{index}]": source.model})
        elif isinstance(source, FunctionSource):
            columns = [name for name in self.train_dataset.column_names or () if name not in _RENAMED]
            columns += [*_FROM_TRL, "environments"] if self.environments is not None else _FROM_TRL
            check_call(source.call, columns)
            own_signal = self.args.own_settings(index).get("reward_signal")
            given = source.call, self._tokenizer, None, own_signal, args.reward_density
            source.scorer = CompletionScorer(*given, batch_size)
        source.shaping = args.with_reward_defaults(source.scorer.kind).shaping()

    # TRL's method makes the completions, reads the rewards and makes advantages of whole completions. These three take
    # hold of what passes, and put advantages of tokens in their place.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        for source in self.sources:
            if source is not None:
                source.token_rewards = source.counts = None
        output = super()._generate_and_score_completions(inputs)
        for index, (source, totals) in enumerate(zip(self.sources, self._rewards_per_func.unbind(1), strict=True)):
            has_opinion = not totals.isnan().all()
            if has_opinion and source is not None and source.token_rewards is None:
                _check_own_settings(self.args, index)
        if all(source is None or source.token_rewards is None for source in self.sources):
            self.args.check_no_token_settings()
            if not self._holds_length:
                return output
        self.args.check_token_advantages()
        output["advantages"] = self._token_advantages(output["completion_ids"].shape[1])
        return output

    def _generate(self, prompts: list) -> Any:
        generated = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask = generated[:3]
        own = [[1] * len(ids) for ids in completion_ids] if tool_mask is None else tool_mask
        self._batch_ids = BatchIds(prompt_ids, completion_ids, own)
        for source in self.sources:
            if isinstance(source, ModelSource):
                source.ids = self._batch_ids
        return generated

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        named = zip(self.reward_funcs, self.reward_func_names, self._rewards_per_func.unbind(1), strict=True)
        for reward, name, values in named:
            # NaN is a function's way to have no opinion, and no classifier's.
            wrong = ~values.isfinite() if isinstance(reward, nn.Module) else values.isinf()
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(f"The reward '{name}' of completion {row} is {values[row]}, not a finite number.")
        return self._rewards_per_func

    def _token_advantages(self, width: int) -> Tensor:
        """Advantages of this process's completions, shape (B, width), from the rewards of all processes."""
        accelerator, device = self.accelerator, self.accelerator.device
        # Tokens of tools are taken out, so that the policy's own stand side by side, and are put back at the end.
        ids, _ = padded(self._batch_ids.completions, device)
        own, _ = padded(self._batch_ids.own, device)
        packed_ids, columns = right_packed(ids, own)
        packed = own.gather(1, columns)

        def gather(x: Tensor) -> Tensor:
            return accelerator.gather(accelerator.pad_across_processes(x, dim=1).contiguous())

        mask = gather(packed)

        def of_all(rows: list[Tensor] | list[Tensor | None]) -> Tensor:
            return gather(_stacked(rows, own.shape, device).gather(1, columns))

        scored = [
            None
            if source is None or source.token_rewards is None
            else RawScores(
                of_all(source.token_rewards),
                source.scorer.signal or "token_scores",
                mask.float() if source.counts is None else of_all(source.counts),
            )
            for source in self.sources
        ]
        of_tokens = [None if scores is None else scores.values for scores in scored]
        ids_of_all = gather(packed_ids)
        worst = None
        if self.args.reward_aggregation == "min":
            least = worst_of([scores for scores in scored if scores is not None])
            worst = least.values
            assert self.sources[0] is not None
            rewards, places = self._spread_of(self.sources[0], least, ids_of_all, mask)
        else:
            rewards, places = self._spread(scored, ids_of_all, mask)
        num_generations = self.num_generations if self.model.training else self.num_generations_eval
        advantages = group_advantages(
            rewards, places, mask, num_generations, self.args.advantage_estimator, self.args.scale_rewards
        )
        metrics = self._metrics["train" if self.model.training else "eval"]
        if worst is not None:
            self._log_totals(worst.sum(1).view(-1, num_generations), metrics)
        metrics["completions/repetition"].append(float(repeated_ngrams(ids_of_all, mask, 3).mean()))
        if self._holds_length:
            target = mean_length(mask) if self._target_length is None else self._target_length
            if self.model.training:  # an evaluation before it is of other prompts
                self._target_length = target
            advantages, bonus = hold_mean_length(advantages, mask, target)
            metrics["length_bonus"].append(bonus)
        self._log_advantages(advantages.sum(1) / mask.sum(1).clamp(min=1))
        first = accelerator.process_index * len(ids)
        rows = slice(first, first + len(ids))
        local = advantages[rows, : columns.shape[1]]
        if self.completion_log is not None and self.model.training:
            weighted = zip(of_tokens, self.reward_weights.tolist(), strict=True)
            scores = [weight * x for x, weight in weighted if x is not None] or [torch.zeros_like(rewards)]
            scores = torch.stack(scores).sum(0) if worst is None else worst
            series = {"scores": scores, "rewards": rewards, "advantages": advantages}
            series = {name: x[rows, : columns.shape[1]] for name, x in series.items()}
            ends = getattr(self, "eos_token_ids", [self._tokenizer.eos_token_id])  # TRL 1.12 knows of one
            ended = torch.isin(packed_ids, torch.tensor(ends, device=device)).any(1)
            prompts = self._batch_ids.prompts
            self.completion_log.collect(self.state.global_step, prompts, packed_ids, packed, ended, series)
        return torch.zeros(len(ids), width, device=device).scatter(1, columns, local)

    def _spread(self, scored: list[RawScores | None], ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of all rewards, and where rewards stand; both of shape (B, T), of all processes."""
        rewards, places = torch.zeros(mask.shape, device=mask.device), torch.zeros_like(mask, dtype=torch.bool)
        for source, scores, totals, weight in zip(
            self.sources,
            scored,
            self._rewards_per_func.unbind(1),
            self.reward_weights.to(mask.device),
            strict=True,
        ):
            rows = (~totals.isnan() & mask.any(1)).nonzero().squeeze(1)  # the others: the source has no opinion
            if len(rows) == 0:
                continue
            if scores is None or source is None:
                spread = place_at_last(totals[rows], mask[rows])
                stands = place_at_last(torch.ones_like(totals[rows]), mask[rows])
            else:
                of_rows = scores._replace(values=scores.values[rows], counts=scores.counts[rows])
                spread, stands = self._spread_of(source, of_rows, ids[rows], mask[rows])
            rewards[rows] += weight * spread
            places[rows] |= stands.bool()
        return rewards, places

    def _spread_of(self, source: RewardSource, scores: RawScores, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token rewards shaped and spread as a source's are, and where they stand; all of shape (B, T)."""
        spread = source.scorer.spread(scores, ids, mask, **source.shaping)
        return spread, source.scorer.places(scores, ids, mask)

    @property
    def _holds_length(self) -> bool:
        if self.args.hold_length is not None:
            return self.args.hold_length
        return any(source is not None and source.scorer.kind != "other" for source in self.sources)

    def _log_totals(self, totals: Tensor, metrics: dict[str, list[float]]) -> None:
        """Log rewards of completions, (groups, G), in place of the sums that TRL has logged."""
        metrics["reward"][-1] = float(totals.mean())
        metrics["reward_std"][-1] = float(totals.std())
        alike = torch.isclose(totals.std(1), torch.zeros_like(totals[:, 0]))
        metrics["frac_reward_zero_std"][-1] = float(alike.float().mean())

    def _log_advantages(self, means: Tensor) -> None:
        """The table of completions has one advantage for each: the mean of its tokens'."""
        logged = self._logs["advantages"]
        for _ in range(min(len(means), len(logged))):
            logged.pop()
        logged.extend(means.tolist())

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """[`~transformers.Trainer.train`]. `resume_from_checkpoint=True` selects the last checkpoint that is whole."""
        output = super().train(checkpoint_to_resume(self, resume_from_checkpoint), *args, **kwargs)
        check_weights(self)
        return output

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(model_name, *args, **kwargs)
        correct_card(self, policy_example, model_name)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        check_weights(self)
        super().save_model(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        begin_checkpoint(self, trial)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Before Trainer's state, the last file of a checkpoint, which tells that all others are there.
        if self.args.should_save and self._target_length is not None:
            Path(output_dir, _STATE_FILE).write_text(json.dumps(self._target_length))
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = None if checkpoint is None else Path(checkpoint, _STATE_FILE)
        if path is not None and path.is_file() and self.args.target_length is None:
            self._target_length = json.loads(path.read_text())


def _stacked(rows: list[Tensor | None], shape: torch.Size, device: torch.device) -> Tensor:
    """Rewards of unequal length as one tensor, 0 where there is none."""
    stacked = torch.zeros(shape, device=device)
    for row, values in enumerate(rows):
        if values is not None:
            stacked[row, : len(values)] = values.to(device)
    return stacked


def _check_own_settings(args: FineGrainedGRPOConfig, index: int) -> None:
    """Raise a `ValueError` if a reward that gives one number for each completion has settings of its own."""
    if set(args.own_settings(index)) - {"reward_signal"}:
        raise ValueError(
            f"`reward_settings[{index}]` has no effect: `reward_funcs[{index}]` gives one reward for each completion, "
            "which is taken as it is."
        )
