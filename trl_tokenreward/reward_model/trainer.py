"""Trainer of the token reward model."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import (
    AutoTokenizer,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from trl import RewardTrainer

from .._trl import get_config_model_id
from ..data.collator import DataCollatorForTokenReward
from ..data.dropped import DroppedRows, count_pairs
from ..data.preprocessing import PREPARED_COLUMNS, WEIGHTS, prepare_dataset
from ..data.vocabulary import check_ids, warn_of_other_tokenizer
from ..nn.adapters import require_something_to_train
from ..nn.finite import check_weights, not_finite
from ..nn.masked import masked_mean
from ..nn.modules import max_positions, vocab_size, without_peft
from ..utils.checkpoints import begin_checkpoint, checkpoint_to_resume
from ..utils.model_card import correct_card, reward_example
from ..utils.paper import PAPER
from ..utils.validation import check_devices, check_tokenizer
from .config import HEAD_LEARNING_RATE, UNCHANGED_TOKEN_WEIGHTS, TokenRewardConfig
from .given_model import (
    HEADS,
    as_token_reward_model,
    check_pad_token,
    load_model,
    require_trainable_token_head,
    settle_precision,
    with_trained_heads,
    zero_sequence_head,
)
from .labels import Labels, by_row, read_labels
from .losses import (
    edit_classification_loss,
    edit_ranking_loss,
    sequence_ranking_loss,
    unchanged_classification_loss,
    unchanged_score_penalty,
)
from .metrics import LearningAlarm, TokenStatistics, WeightedMeans
from .modeling import TokenRewardOutput


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


logger = get_logger(__name__)

LOSSES = ("sequence", "token", "unchanged")

_ONE_SIDE = "Rows of one side (a completion with spans) train the token loss alone:"
_NOTHING_TO_LEARN = "with `token_loss_weight=0` there is nothing to learn from them. Leave them out, or give a weight."


class TokenRewardTrainer(RewardTrainer):
    """
    Trainer for token reward models, on pairs of an original response (`rejected`) and its minimal edit (`chosen`), and
    on responses whose wrong spans are marked (`completion` and `completion_spans`).

    It is a [`~trl.RewardTrainer`] that also trains on the edited tokens, so that one model ranks responses and scores
    their tokens. Arguments, PEFT, streaming, evaluation sets, margins and checkpoints work as in `RewardTrainer`.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_tokenreward import TokenRewardTrainer

    >>> dataset = load_dataset("Anthropic/hh-rlhf", data_dir="harmless-base", split="train")

    >>> trainer = TokenRewardTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", train_dataset=dataset)
    >>> trainer.train()
    ```

    Each part of the loss is a mean over what it counts (pairs, edited tokens or rows with edits, unchanged tokens) in
    the whole optimizer step; of tokens with a severity it is the mean by these weights. So the step does not depend on
    how its rows are split into batches (`gradient_accumulation_steps`) and over processes.

    Rows of one side have no part in the loss and the metrics of sequences. Where a training set has no other rows, a
    new sequence head is set to zero and stays so ([`TokenRewardModel.sequence_head_is_trained`] is `False`), and
    settings of the sequence loss or of edits are an error.

    The logs hold what `RewardTrainer` logs (`accuracy`, `margin` and the rewards are of sequences), and:

    - `loss/sequence` (`RewardTrainer`'s loss), `loss/token`, `loss/unchanged`: the parts of the loss, not weighted.
      They and the metrics of sequences are means over all pairs or tokens since the last log, or of an evaluation set,
      as is `eval_loss`;
    - `token_accuracy`: the share of (edited-in, edited-out) token pairs, within a row, where the edited-in one scores
      higher; ties count half;
    - `token_auroc`: how well low scores find the wrong tokens of the originals, edited-out ones among unchanged ones;
      the mean over training batches, and over all tokens of an evaluation set;
    - `token_score/edited_in`, `token_score/edited_out`, `token_score/unchanged`: mean scores of these tokens;
    - `dropped/identical`, `dropped/too_long`, `dropped/not_minimal`: rows of a stream dropped since its start, as this
      process counted them. Those of a `Dataset` are known at once, see [`~TokenRewardTrainer.dropped`].

    A metric without anything to measure (no token was edited) is not logged. With several evaluation sets, each has its
    name in its metrics: `eval_<name>_token_auroc`.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained:

            - a name on the Hub or a folder, loaded with [`TokenRewardModel.from_pretrained`] and
              `args.model_init_kwargs`: a causal language model, a reward model or a token reward model, in `float32` if
              these say nothing else;
            - a [`TokenRewardModel`];
            - a causal language model, sequence or token classifier. A token reward model is made of its modules with
              [`TokenRewardModel.from_backbone`]; training changes its weights too, and `trainer.model` is the one to
              keep;
            - a PEFT model around a [`TokenRewardModel`], or around one of the others with a single adapter that is
              trained, which is moved to a token reward model; `trainer.model` is the one to keep.
        args ([`TokenRewardConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        data_collator (`DataCollator`, *optional*):
            Defaults to [`DataCollatorForTokenReward`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Pairs, rows of one side or both, in the formats of [`~data.preprocessing.prepare_dataset`].
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            Data to evaluate on, in the same formats.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Fast tokenizer. If `None`, it is loaded from the model's name.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            Further metrics of an evaluation. The predictions are the sequence scores, as from `RewardTrainer`.
        callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics:
            As in [`~transformers.Trainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of a model that is loaded by name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            PEFT configuration used to wrap the model. The two heads are added to (a copy of) its `modules_to_save`,
            since new heads have to be trained in full.

    Raises:
        ValueError: If a row is malformed, if no rows are left, if the model has no embedding for one of their tokens or
            for the pad token, or if the heads cannot be trained.
        TypeError: If `args` or `model` is of another type.
    """

    # Set by methods of the parents, where type checkers do not look.
    data_collator: Any
    _signature_columns: list[str] | None

    loss_is_scaled_for_ga = True  # `compute_loss` divides by what the whole optimizer step counts.

    _tag_names = ["trl", "reward-trainer", "token-reward-trainer"]
    _name = "Token Reward"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: TokenRewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = TokenRewardConfig(f"{name.split('/')[-1]}-TokenReward")
        if not isinstance(args, TokenRewardConfig):
            raise TypeError(f"`args` must be a `TokenRewardConfig`, got {type(args).__name__}.")

        self._dropped: dict[str, DroppedRows] = {}
        self._has_pairs = True
        self._prepared: WeakSet[Any] = WeakSet()
        self._streams: set[str] = set()
        self._token_statistics = {"train": TokenStatistics(), "eval": TokenStatistics(pool_auroc=True)}
        self._means = {"train": WeightedMeans(), "eval": WeightedMeans()}
        self._eval_name: str | None = None
        self._alarm: LearningAlarm | None = None

        if processing_class is not None:
            check_tokenizer(processing_class, "processing_class")
        set_seed(args.seed)  # heads that the checkpoint does not have are initialised at random
        parent_args = args
        if isinstance(model, str):
            if processing_class is None:
                revision = (args.model_init_kwargs or {}).get("revision")
                processing_class = AutoTokenizer.from_pretrained(
                    model, revision=revision, trust_remote_code=args.trust_remote_code
                )
            model = load_model(model, args, quantization_config)
            quantization_config = None
            if args.model_init_kwargs is not None:
                # The parent would warn that they are ignored. A copy, since `args` is the caller's.
                parent_args = copy.copy(args)
                parent_args.model_init_kwargs = None
        model = as_token_reward_model(model)
        self._reader = model  # for what is asked of it while the parent, which may add embeddings, prepares the data
        if peft_config is not None:
            peft_config = with_trained_heads(peft_config, model)

        super().__init__(
            model=model,
            args=parent_args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        check_devices(self.args)
        settle_precision(self.model, self.accelerator)
        self.args.model_init_kwargs = args.model_init_kwargs
        if data_collator is None:  # the parent's knows the pad token that the parent settled on
            self.data_collator = DataCollatorForTokenReward(
                self.data_collator.pad_token_id, self.data_collator.pad_to_multiple_of
            )
        require_trainable_token_head(self.model, args, optimizers[0])
        # Asked here, since a resumed training loads its weights before it makes its optimizer.
        base = without_peft(self.model)
        self._token_head_is_new = not base.token_head_is_trained
        if base.sequence_head_is_new and not (self._has_pairs and args.sequence_loss_weight > 0):
            zero_sequence_head(self.model)
            why = "`sequence_loss_weight` is 0" if self._has_pairs else "No row of the training set has two sides"
            logger.warning(
                f"{why}, so the sequence head stays untrained: it scores every text 0, and PPO, GRPO and judges refuse "
                "its score."
            )

    @property
    def dropped(self) -> dict[str, dict[str, int]]:
        """For each data set (`"train"`, `"eval"` or `"eval_<name>"`): its `rows`, those `kept`, and those dropped
        because they are `identical`, `too_long` or `not_minimal`. The counts of a stream grow as it is read, epoch
        after epoch, and are those of this process."""
        return {name: dropped.counts() for name, dropped in self._dropped.items()}

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: TokenRewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if dataset in self._prepared:  # as the parts of a `dict` are when they are evaluated one by one
            return dataset
        embeddings = vocab_size(self._reader)
        check_pad_token(processing_class, embeddings)
        warn_of_other_tokenizer(processing_class, embeddings, "`model`")
        # The training set comes first; what comes after it under any name is for evaluation.
        name = dataset_name
        if name != "eval" and "train" in self._dropped:
            name = f"eval_{dataset_name}"
        with PartialState().main_process_first():
            dataset, dropped = prepare_dataset(
                dataset,
                processing_class,
                max_length=args.max_length,
                max_edit_ratio=args.max_edit_ratio,
                num_proc=args.dataset_num_proc,
                num_workers=args.dataloader_num_workers,
                name=name,
            )
            sizes = embeddings, name, max_positions(self._reader)
            dataset = check_ids(dataset, ("chosen_ids", "rejected_ids"), *sizes)
        if name == "train":
            self._has_pairs = _check_sides(dataset, args)
        self._dropped[name] = dropped
        self._prepared.add(dataset)
        if isinstance(dataset, IterableDataset):
            self._streams.add(name)
        else:
            self._streams.discard(name)
            self._report_dropped(name)
        return dataset

    def _report_dropped(self, name: str) -> None:
        counts = self._dropped[name].counts()
        report = logger.warning if counts["kept"] < counts["rows"] else logger.info
        report(f"Data set {name}: {self._dropped[name].describe()}.")

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """[`~transformers.Trainer.create_optimizer`], with the heads in a parameter group of their own."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if given:  # the caller's own, with the rates that they chose
            return optimizer
        rate = self.args.head_learning_rate
        if rate is None:
            rate = self.args.learning_rate
            if self._token_head_is_new and self.args.token_loss_weight > 0:
                rate = max(rate, HEAD_LEARNING_RATE)
        model = args[0] if args else kwargs.get("model")
        model = self.model if model is None else model
        heads = {id(p) for name, p in model.named_parameters() if not set(HEADS).isdisjoint(name.split("."))}
        # The first group stays the first, also where it gets empty: its rate is the one that is logged.
        for group in list(self.optimizer.param_groups):
            of_heads = [p for p in group["params"] if id(p) in heads]
            if of_heads:
                group["params"] = [p for p in group["params"] if id(p) not in heads]
                self.optimizer.add_param_group({**group, "params": of_heads, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [*PREPARED_COLUMNS, WEIGHTS, "margin"]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """[`~transformers.Trainer.train`]. `resume_from_checkpoint=True` selects the last checkpoint that is whole."""
        require_something_to_train(self.model)
        self._alarm = None  # until the number of steps is known
        output = super().train(checkpoint_to_resume(self, resume_from_checkpoint), *args, **kwargs)
        if self._has_pairs and self.args.sequence_loss_weight > 0:
            without_peft(self.model)._random_score = None  # also where the head is frozen, or adapted by layers
        check_weights(self)
        if "train" in self._streams:
            self._dropped["train"].require_rows("train")
            self._report_dropped("train")
        return output

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        # A prediction logs nothing. Without this, the next evaluation would count its measurements.
        self._metrics["eval"].clear()
        self._token_statistics["eval"].pop()
        self._means["eval"].pop()
        self._eval_name = metric_key_prefix
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            means = self._means["eval"].means()
            losses = torch.tensor([means.get(f"loss/{name}", 0.0) for name in LOSSES], dtype=torch.double)
            output.metrics[f"{metric_key_prefix}_loss"] = self._weighted(losses).item()
            return output
        finally:  # a data loader without batches may raise a less helpful error
            if metric_key_prefix in self._streams:
                self._dropped[metric_key_prefix].require_rows(metric_key_prefix)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        if not prediction_loss_only and "places" in inputs and (inputs["places"] < 0).any():
            raise ValueError(
                "A prediction, or `compute_metrics`, is of the sequence scores of pairs, but a row has one side. Leave "
                "these rows out, or measure their tokens with `evaluate_token_rewards`."
            )
        # `compute_metrics` gets the sequence scores, as from `RewardTrainer`; `ignore_keys=[]` gives all.
        if ignore_keys is None:
            ignore_keys = ["token_scores", "prefix_scores", "hidden_states", "attentions"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor | tuple[torch.Tensor, TokenRewardOutput]:
        labels = read_labels(inputs, self.args.use_anchors)
        if self.args.token_loss_weight == 0 and not labels.is_pair.all():
            raise ValueError(f"{_ONE_SIDE} {_NOTHING_TO_LEARN}")
        # Not by the parent's method, which takes every row for half of a pair.
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        chosen, rejected = by_row(outputs.logits.squeeze(-1), labels.places).unbind(1)
        losses = self._losses(
            chosen, rejected, inputs.get("margin"), by_row(outputs.token_scores, labels.places), labels
        )
        if num_items_in_batch is not None:
            # From means over this batch to its shares in the means over the step. DDP averages over the processes.
            whole = torch.where(num_items_in_batch > 0, num_items_in_batch, 1)
            losses = (
                losses
                * (labels.counts(self._ranks) / whole)
                * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)
            )
        loss = self._weighted(losses)
        with torch.no_grad():
            self._record(outputs, inputs, labels)
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, torch.Tensor | None]:
        """[`~transformers.Trainer.get_batch_samples`], with the numbers of pairs and the weights of tokens that the
        three losses of the optimizer step are means over, on all processes. Shape (3,)."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        if not batches:
            return batches, None
        labels = [read_labels(batch, self.args.use_anchors) for batch in batches]
        counts = torch.stack([of_batch.counts(self._ranks) for of_batch in labels]).sum(0).to(self.args.device)
        return batches, self.accelerator.reduce(counts) if self.args.average_tokens_across_devices else counts

    @property
    def _ranks(self) -> bool:
        return self.args.token_loss == "ranking"

    def _losses(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        margin: torch.Tensor | None,
        token_scores: torch.Tensor,
        labels: Labels,
    ) -> torch.Tensor:
        """The three parts of the loss, shape (3,), of sequence scores, (B,), and token scores, (B, 2, L)."""
        args = self.args
        sequence_loss = sequence_ranking_loss(chosen, rejected, margin, labels.is_pair)
        if args.center_rewards_coefficient is not None:
            centre = masked_mean((chosen + rejected).square(), labels.is_pair)
            sequence_loss = sequence_loss + args.center_rewards_coefficient * centre
        (scores_in, scores_out), (edited_in, edited_out) = token_scores.unbind(1), labels.edited.unbind(1)
        if self._ranks:
            token_loss = edit_ranking_loss(
                scores_in, scores_out, edited_in, edited_out, args.edit_aggregation or "mean"
            )
        else:
            token_loss = edit_classification_loss(scores_in, scores_out, edited_in, edited_out)
        of_unchanged = {"right": unchanged_classification_loss, "zero": unchanged_score_penalty}
        unchanged_loss = of_unchanged[args.unchanged_token_target](token_scores, labels.unchanged)
        return torch.stack([sequence_loss, token_loss, unchanged_loss])

    def _weighted(self, losses: torch.Tensor) -> torch.Tensor:
        """The loss of its three parts. Weights of 0 are kept in the sum: every parameter needs a gradient under
        distributed training."""
        args = self.args
        unchanged_weight = args.unchanged_token_weight
        if unchanged_weight is None:
            unchanged_weight = UNCHANGED_TOKEN_WEIGHTS[args.unchanged_token_target]
        weights = (args.sequence_loss_weight, args.token_loss_weight, args.token_loss_weight * unchanged_weight)
        return (losses * losses.new_tensor(weights)).sum()

    def _record(self, outputs: Any, inputs: dict[str, Any], labels: Labels) -> None:
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            # A model that is split over processes has the same batch on each of them.
            read = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += read // getattr(self, "_tp_size", 1)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        # One entry for each row, (B, 2, L, 3), so that an evaluation can drop the rows that were repeated to fill its
        # last batch. Training keeps them: it trains on them, and it reads batches ahead, so the last is not known as
        # such.
        gather = self.accelerator.gather if mode == "train" else self.accelerator.gather_for_metrics
        scores = by_row(outputs.token_scores.float(), labels.places)
        table = torch.stack([scores, labels.edited, labels.unchanged], dim=-1)
        table = gather(self.accelerator.pad_across_processes(table, dim=2)).cpu()
        sequences = by_row(outputs.logits.squeeze(-1).float(), labels.places)
        margin = inputs.get("margin", sequences.new_zeros(len(sequences)))
        sequences = torch.cat([sequences, margin.unsqueeze(1), labels.places], dim=1)
        sequences = gather(sequences).cpu()
        scores, edited, unchanged = table.unbind(-1)
        chosen, rejected, margin, *places = sequences.unbind(1)
        labels = Labels(edited, unchanged, places[0] >= 0, torch.stack(places, dim=1))
        # Gathered, so that all processes raise the same.
        made = {"a token score of `model`": scores.flatten(1), "a sequence score of `model`": sequences[:, :2]}
        where = f"Optimizer step {self.state.global_step}, batch" if mode == "train" else "Evaluation, batch"
        if problem := not_finite(where, made, (edited + unchanged).flatten(1)):
            raise ValueError(problem)
        self._record_means(mode, scores, labels, chosen, rejected, margin)
        auroc = self._token_statistics[mode].add(scores, edited > 0, unchanged > 0)
        if mode == "train" and self.args.token_loss_weight > 0:
            self._alarm = self._alarm or LearningAlarm(self.state.max_steps)
            mean = self._alarm.add(self.state.global_step, auroc, len(scores))
            if mean is not None:
                logger.warning(
                    "The token scores do not learn: after a tenth of the steps their AUROC of wrong tokens is "
                    f"{mean:.2f} (chance is .50). Raise `head_learning_rate`, or check that the edits are minimal "
                    "(`trl-tokenreward inspect`, `max_edit_ratio`)."
                )

    def _record_means(
        self,
        mode: str,
        scores: torch.Tensor,
        labels: Labels,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        margin: torch.Tensor,
    ) -> None:
        """Adds a batch of B rows: scores of tokens, (B, 2, L), and what belongs to each pair, (B,)."""
        losses = self._losses(chosen, rejected, margin, scores, labels)
        means = self._means[mode]
        for name, value, count in zip(LOSSES, losses, labels.counts(self._ranks).tolist(), strict=True):
            if count or name != "sequence":  # which an untrained head has no part in
                means.add(f"loss/{name}", value.item(), count)
        chosen, rejected = chosen[labels.is_pair], rejected[labels.is_pair]
        if not len(chosen):
            return
        rewards = torch.cat([chosen, rejected])
        self._metrics[mode]["min_reward"].append(rewards.min().item())
        self._metrics[mode]["max_reward"].append(rewards.max().item())
        for name, of_pairs in {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
        }.items():
            means.add(name, of_pairs.mean().item(), len(of_pairs))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        begin_checkpoint(self, trial)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # The state, which makes the checkpoint count as whole, comes next.

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        check_weights(self)
        super().save_model(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        for key, value in {**self._means[mode].pop(), **self._token_statistics[mode].pop()}.items():
            metrics[key] = [value]
        # After an evaluation the model stays in evaluation mode, and the summary of the training is logged in it.
        name, self._eval_name = ("train" if mode == "train" else self._eval_name), None
        if name in self._streams:
            counts = self._dropped[name].counts()
            for reason in self._dropped[name].remedies:
                metrics[f"dropped/{reason}"] = [counts[reason]]
        if mode == "eval" and name and name.startswith("eval_"):
            # The parent puts `eval_` before every key, so that one evaluation set's metrics would overwrite another's.
            for key in list(metrics):
                metrics[f"{name.removeprefix('eval_')}_{key}"] = metrics.pop(key)
        super().log(logs, start_time)

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(model_name, *args, **kwargs)
        correct_card(self, reward_example, model_name)


def _check_sides(dataset: Dataset | IterableDataset, args: TokenRewardConfig) -> bool:
    """Whether a training set has pairs. Raises a `ValueError` for settings that then have no effect.

    Of a stream it is not known before it is read, unless it has no columns for pairs.
    """
    if isinstance(dataset, Dataset):
        pairs = count_pairs(dataset)
        if args.token_loss_weight == 0 and pairs < len(dataset):
            raise ValueError(f"{_ONE_SIDE} {_NOTHING_TO_LEARN}")
    else:
        pairs = int(dataset.column_names is None or "chosen_ids" in dataset.column_names)
    if pairs:
        return True
    if isinstance(dataset, Dataset) and not any(map(any, dataset["rejected_edit_mask"])):
        raise ValueError(f"{_ONE_SIDE} no token of the training set is marked as wrong, so there is nothing to learn.")
    if args.unchanged_token_weight == 0:
        raise ValueError(
            f"{_ONE_SIDE} with `unchanged_token_weight=0` the only tokens that they train are wrong, and the model "
            "would call all wrong. Give a weight, or rows with two sides."
        )
    for name in ("center_rewards_coefficient", "max_edit_ratio", "use_anchors", "sequence_loss_weight"):
        if getattr(args, name) not in (getattr(TokenRewardConfig, name), 0):
            raise ValueError(f"{_ONE_SIDE} `{name}` has no effect on a training set without pairs.")
    return False
