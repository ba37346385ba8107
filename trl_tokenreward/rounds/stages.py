"""The stages of a round. Each reads what the ones before it wrote, writes its own part of the round's folder, and
returns its figures."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.dropped import DroppedRows
from ..data.formats import template_columns
from ..data.preprocessing import PREPARED_COLUMNS, WEIGHTS, prepare_dataset, prepared_features
from ..editing.checks import EDITED
from ..editing.edit_dataset import edit_dataset
from ..editing.editors import MAYBE_RIGHT_TEMPLATE, Editor
from ..evaluation.sampler import Answer, AnswerSampler
from ..ppo.checkpointing import VALUE_MODEL_FOLDER
from ..ppo.config import FineGrainedPPOConfig
from ..ppo.evaluation import METRICS
from ..ppo.trainer import FineGrainedPPOTrainer
from ..reward_model.config import TokenRewardConfig
from ..reward_model.modeling import TokenRewardModel
from ..reward_model.trainer import TokenRewardTrainer
from ..utils.files import write_text
from ..utils.loading import load_split, load_tokenizer, loading
from .folder import RoundFolder


# What of an evaluation of the reward model tells rounds apart.
_REWARD_METRICS = ("accuracy", "token_accuracy", "token_auroc")


def load_policy(name: str | Path, init_kwargs: dict[str, Any] | None) -> PreTrainedModel:
    """A causal language model, in `float32` if the arguments say nothing else."""
    kwargs = {"dtype": "float32", "use_safetensors": True, "trust_remote_code": False, **(init_kwargs or {})}
    with loading(name, "policy"):
        return AutoModelForCausalLM.from_pretrained(name, **kwargs)


def load_reward_tokenizer(name: str | Path, args: TokenRewardConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the reward model, from where the trainer loads the model."""
    init_kwargs = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    return load_tokenizer(name, "tokenizer of the reward model", init_kwargs)


# --- sampling -------------------------------------------------------------------------------------------------------


def prompts_of_round(prompts: Dataset, number: int, limit: int | None, seed: int) -> Dataset:
    """The prompts of round `number`, from 1: the next `limit` of an order that the seed gives, and from its beginning
    again after the last; or all."""
    if limit is None:
        return prompts
    order = np.random.default_rng(seed).permutation(len(prompts))
    start = (number - 1) * limit
    return prompts.select([int(order[place % len(order)]) for place in range(start, start + limit)])


def sample(
    folder: RoundFolder,
    policy: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    args: FineGrainedPPOConfig,
    init_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """Writes an answer of the policy to each prompt to `samples.jsonl`, as rows of `prompt` and `completion`.

    Answers that were cut off at `response_length` are dropped and counted as `unfinished`: an edit would not end them
    either, and the reward model would learn that they end where they were cut off.
    """
    stop_token_id = args.find_stop_token(tokenizer.eos_token_id)
    sampler = AnswerSampler(
        tokenizer,
        prompts,
        response_length=args.response_length,
        temperature=args.temperature,
        stop_token_id=stop_token_id,
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed,
        progress=not args.disable_tqdm,
    )
    answers = sampler(load_policy(policy, init_kwargs).to(args.device), "policy")
    kept = [
        _sample(row, prompt, answer)
        for row, prompt, answer in zip(prompts, sampler.prompts, answers, strict=True)
        if answer.ended or stop_token_id is None
    ]
    if not kept:
        raise ValueError(
            f"None of the policy's {len(answers)} answers ended within `response_length={args.response_length}` "
            "tokens: raise it."
        )
    write_text(folder.samples, "".join(json.dumps(row) + "\n" for row in kept))
    return {
        "prompts": len(answers),
        "sampled": len(kept),
        "unfinished": len(answers) - len(kept),
        "mean_length": float(np.mean([len(answer.ids) for answer in answers])),
        "seed": args.seed,
    }


def _sample(row: dict[str, Any], prompt: Any, answer: Answer) -> dict[str, Any]:
    completion = answer.text if isinstance(prompt, str) else [{"role": "assistant", "content": answer.text}]
    return {"prompt": prompt, "completion": completion, **template_columns(row)}


# --- editing --------------------------------------------------------------------------------------------------------


def edit(folder: RoundFolder, editor: Editor, options: dict[str, Any], progress: bool) -> dict[str, Any]:
    """Has the editor edit the samples, with [`~editing.edit_dataset.edit_dataset`], which resumes by its own log."""
    samples = load_split(folder.samples, "train")
    options = {"template": MAYBE_RIGHT_TEMPLATE, **options}
    result = edit_dataset(samples, editor, folder.edits, accept_unchanged=True, progress=progress, **options)
    cost = {} if result.cost is None else {"cost": result.cost}
    return {**_edit_counts(result.counts, folder), "usage": asdict(result.usage), **cost}


def read_peoples_edits(folder: RoundFolder) -> dict[str, Any]:
    """Checks that the edits which people saved are edits of the samples, and counts them.

    Raises:
        ValueError: If one is not; it names the row.
    """
    samples, edits = load_split(folder.samples, "train"), load_split(folder.edits, "train")
    for place, row in enumerate(edits):
        number = row["row"]
        known = samples[number] if 0 <= number < len(samples) else {"prompt": None, "completion": None}
        if (known["prompt"], known["completion"]) != (row["prompt"], row["rejected"]):
            raise ValueError(
                f"Row {place} of {folder.edits} is no edit of row {number} of {folder.samples}: save the edits of "
                "these samples there."
            )
    dropped = folder.edits / "dropped.jsonl"
    lines = dropped.read_text(encoding="utf-8").splitlines() if dropped.exists() else []
    counts = Counter(json.loads(line)["reason"] for line in lines)
    people = len(set(edits["annotator"])) if "annotator" in edits.column_names else 0
    return {**_edit_counts({EDITED: len(edits), **counts}, folder), "people": people}


def _edit_counts(counts: dict[str, int], folder: RoundFolder) -> dict[str, Any]:
    unchanged = {"identical", "nothing_wrong"}
    dropped = {reason: number for reason, number in counts.items() if reason not in {EDITED, *unchanged}}
    if not counts[EDITED]:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.items() if number)
        raise ValueError(f"No answer in {folder.samples} was edited ({reasons}): there is nothing to train on.")
    return {EDITED: counts[EDITED], "unchanged": sum(counts.get(name, 0) for name in unchanged), "dropped": dropped}


# --- training -------------------------------------------------------------------------------------------------------


def prepare_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: TokenRewardConfig, name: str
) -> tuple[Dataset, DroppedRows]:
    """Rows of any format as the trainer prepares them, so that those of two formats can be one data set."""
    limits = {"max_length": args.max_length, "max_edit_ratio": args.max_edit_ratio}
    rows, dropped = prepare_dataset(dataset, tokenizer, num_proc=args.dataset_num_proc, name=name, **limits)
    kinds = Features({**prepared_features((*PREPARED_COLUMNS, WEIGHTS)), "margin": Value("float64")})
    return rows.map(_completed, remove_columns=rows.column_names, features=kinds), dropped


def _completed(row: dict[str, Any]) -> dict[str, Any]:
    """A prepared row with the columns of all. A pair without a margin has one of 0, which says the same."""
    completed = {name: row.get(name) for name in (*PREPARED_COLUMNS, WEIGHTS, "margin")}
    if completed["margin"] is None and completed["chosen_ids"] is not None:
        completed["margin"] = 0.0
    return completed


def train_reward_model(
    folder: RoundFolder,
    reward_model: str | Path,
    earlier: Dataset | None,
    eval_pairs: Dataset | None,
    args: TokenRewardConfig,
    replay: float,
) -> dict[str, Any]:
    """Trains the reward model on from where it is, on the edits and on a share of the earlier pairs, which are
    prepared. Saves it to `reward_model`."""
    tokenizer = load_reward_tokenizer(reward_model, args)
    rows, dropped = prepare_pairs(load_split(folder.edits, "train"), tokenizer, args, "edits")
    parts, replayed = [rows], 0
    if earlier is not None and (replayed := round(replay * len(earlier))):
        chosen = np.random.default_rng(args.seed).permutation(len(earlier))[:replayed]
        parts.append(earlier.select(sorted(map(int, chosen))))
    args.max_edit_ratio = None  # these rows have passed it, and a trainer measures those of ids by tokens
    trainer = TokenRewardTrainer(
        model=str(reward_model),
        args=args,
        train_dataset=concatenate_datasets(parts),
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
    )
    figures: dict[str, Any] = {"edits": dropped.counts(), "replayed": replayed, "seed": args.seed}
    before_and_after = _train(trainer, lambda: _held_out(trainer, eval_pairs, _REWARD_METRICS))
    return figures | before_and_after


def train_policy(
    folder: RoundFolder,
    policy: str | Path,
    first_policy: str | Path | None,
    prompts: Dataset,
    eval_prompts: Dataset | None,
    args: FineGrainedPPOConfig,
    init_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """PPO with the round's reward model, from where the policy is. Saves it to `policy`.

    A value model beside the policy, which an earlier round saved, goes on too. The reference is `first_policy`, or the
    policy itself if that is `None`.
    """
    values = Path(policy) / VALUE_MODEL_FOLDER
    trainer = FineGrainedPPOTrainer(
        args=args,
        processing_class=load_tokenizer(policy, init_kwargs=init_kwargs),
        model=load_policy(policy, init_kwargs),
        ref_model=None if first_policy is None else load_policy(first_policy, init_kwargs),
        reward_model=TokenRewardModel.from_pretrained(folder.reward_model, dtype="float32"),
        value_model=TokenRewardModel.from_pretrained(values, dtype="float32") if values.is_dir() else None,
        train_dataset=prompts,
        eval_dataset=eval_prompts,
        reward_processing_class=load_tokenizer(folder.reward_model),
    )
    figures = _train(trainer, lambda: _held_out(trainer, eval_prompts, METRICS))
    logged: dict[str, Any] = next((log for log in reversed(trainer.state.log_history) if "objective/kl" in log), {})
    figures["last_log"] = {name: logged[name] for name in METRICS if name in logged}
    length = {"target_length": trainer.adaptive.target_length} if trainer.args.hold_length else {}
    return {"updates": trainer.schedule.num_updates, **figures, **length, "seed": args.seed}


def _held_out(trainer: Any, dataset: Dataset | None, metrics: tuple[str, ...]) -> dict[str, float]:
    if dataset is None:
        return {}
    measured = trainer.evaluate()
    return {name: measured[f"eval_{name}"] for name in metrics if f"eval_{name}" in measured}


def _train(trainer: Any, measure: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Trains, or resumes from the last whole checkpoint, and saves the model. Returns its figures before and after."""
    before = measure()
    checkpoints = Path(trainer.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
    trainer.train(resume_from_checkpoint=any(checkpoints) or None)
    after = measure()
    trainer.save_model()
    return {"before": before, "after": after} if before else {}
