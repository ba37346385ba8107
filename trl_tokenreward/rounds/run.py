"""Runs rounds: a policy writes, its answers are edited, the reward model and the policy train on."""

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.dropped import DroppedRows
from ..editing.editors import Editor, FunctionEditor
from ..ppo.config import FineGrainedPPOConfig
from ..ppo.prompts import REMEDIES, prepare_prompts
from ..ppo.schedule import Schedule
from ..reward_model.config import TokenRewardConfig
from ..reward_model.saved_adapter import check_saved_adapter, saved_adapter
from ..utils.chat_endpoint import Prompt
from ..utils.files import lock_folder
from ..utils.loading import check_source, fingerprint, load_split, load_tokenizer
from ..utils.validation import check_least
from .folder import RoundFolder
from .settings import RoundConfig, for_round
from .stages import (
    edit,
    load_reward_tokenizer,
    prepare_pairs,
    prompts_of_round,
    read_peoples_edits,
    sample,
    train_policy,
    train_reward_model,
)


logger = logging.get_logger(__name__)

PEOPLE: Literal["people"] = "people"
RoundEditor = Editor | Callable[[list[Prompt], list[str]], list[str]] | Literal["people"]


class Round(NamedTuple):
    """A round that is done.

    Args:
        number (`int`):
            From 1.
        edits (`Path`):
            The data set of edits.
        reward_model, policy (`Path`):
            The models that it made.
        figures (`dict`):
            As in `round.json`: the rows of the `data`, and those of each stage, `samples`, `edits`, `reward_model` and
            `policy`.
    """

    number: int
    edits: Path
    reward_model: Path
    policy: Path
    figures: dict[str, Any]

    def describe(self) -> str:
        """The figures in a sentence or two."""
        edits, dropped = self.figures["edits"], sum(self.figures["edits"]["dropped"].values())
        sentences = [
            f"Round {self.number}: {self.figures['samples']['sampled']} answers, {edits['edited']} edited, "
            f"{edits['unchanged']} unchanged, {dropped} dropped."
        ]
        for stage, name in (("reward_model", "accuracy"), ("policy", "objective/scores"), ("policy", "objective/kl")):
            figures = self.figures[stage]
            if name in figures.get("before", {}):
                before, after = figures["before"][name], figures["after"][name]
                sentences.append(f"Held out, {stage}, {name}: {before:.3f} before, {after:.3f} after.")
        return " ".join(sentences)


class EditsPending(Exception):
    """A round waits for people's edits. The message says which commands make them."""


def run_rounds(
    policy: str | Path,
    reward_model: str | Path,
    prompts: Dataset,
    editor: RoundEditor,
    output: str | Path,
    *,
    config: RoundConfig,
    rounds: int = 1,
    pairs: Dataset | None = None,
    eval_pairs: Dataset | None = None,
) -> list[Round]:
    """Rounds of editing, one after the other, each in a folder `round-01`, `round-02`, ... of `output`.

    In each round

    1. the current policy answers prompts (`samples.jsonl`);
    2. the editor minimally edits these answers (`edits/`);
    3. the reward model trains on from where it is, on the edits and on earlier pairs (`reward_model/`);
    4. PPO goes on from the current policy with that reward model (`policy/`).

    `round.json` has the settings and each stage's figures. The same call resumes: stages that are done are not
    repeated, edits go on after the last row, and both trainings go on from their last whole checkpoint, if the
    configurations save any. More `rounds` may be asked for later; other settings are an error.

    The edits are those of [Xu et al.](https://huggingface.co/papers/2406.02756), of what the policy writes now; that
    feedback is collected anew on each policy is iterated online RLHF ([Bai et
    al.](https://huggingface.co/papers/2204.05862)).

    Args:
        policy (`str` or `Path`):
            The first policy: a causal language model's folder or name on the Hub.
        reward_model (`str` or `Path`):
            The first reward model, or what one is made of: as of [`TokenRewardTrainer`].
        prompts ([`~datasets.Dataset`]):
            As of [`FineGrainedPPOTrainer`]: for sampling and for PPO.
        editor ([`~editing.editors.Editor`], `Callable` or `"people"`):
            A language model; a function of prompts and answers that returns the edited answers (see
            [`~editing.editors.FunctionEditor`]); or people, for whom each round stops after sampling.
        output (`str` or `Path`):
            A folder. Only one call at a time may write to it.
        config ([`RoundConfig`]):
            Settings.
        rounds (`int`, *optional*, defaults to `1`):
            How many rounds there are then, with those that are done.
        pairs ([`~datasets.Dataset`], *optional*):
            Preference pairs that the reward model trains on along with the edits, such as those that it was trained on,
            in any of the formats of [`~data.preprocessing.prepare_dataset`].
        eval_pairs ([`~datasets.Dataset`], *optional*):
            Held-out pairs. Each round measures the reward model on them, and the policy on their prompts, before and
            after it trains.

    Returns:
        `list[Round]`: all rounds.

    Raises:
        EditsPending: If a round waits for people's edits.
        ValueError: For a bad argument, row or setting, before anything is sampled; or if no answer was edited.
    """
    check_least(rounds=(rounds, 1))
    output, done = Path(output), list[Round]()
    lock = lock_folder(output)
    try:
        for number in range(1, rounds + 1):
            done.append(
                run_round(
                    done[-1].policy if done else policy,
                    done[-1].reward_model if done else reward_model,
                    prompts,
                    editor,
                    output / f"round-{number:02d}",
                    config=config,
                    number=number,
                    first_policy=policy,
                    pairs=[*([] if pairs is None else [pairs]), *(load_split(r.edits, "train") for r in done)],
                    eval_pairs=eval_pairs,
                    target_length=done[0].figures["policy"].get("target_length") if done else None,
                )
            )
    finally:
        lock.release()
    return done


def run_round(
    policy: str | Path,
    reward_model: str | Path,
    prompts: Dataset,
    editor: RoundEditor,
    folder: str | Path,
    *,
    config: RoundConfig,
    number: int = 1,
    first_policy: str | Path | None = None,
    pairs: Sequence[Dataset] = (),
    eval_pairs: Dataset | None = None,
    target_length: float | None = None,
) -> Round:
    """One round of [`run_rounds`].

    Args:
        policy, reward_model (`str` or `Path`):
            Those with which the round begins.
        prompts, editor, config, eval_pairs:
            As of [`run_rounds`].
        folder (`str` or `Path`):
            The round's own folder.
        number (`int`, *optional*, defaults to `1`):
            The round's number, from 1, by which it takes its prompts and its seeds.
        first_policy (`str` or `Path`, *optional*):
            The reference of PPO's KL penalty with `reference="first"`. Defaults to `policy`.
        pairs (`Sequence[Dataset]`, *optional*):
            The earlier pairs, each data set in a format of its own.
        target_length (`float`, *optional*):
            The mean length that PPO holds, where it does and its configuration has none: that of the first round, so
            that it does not drift from round to round.

    Raises:
        EditsPending, ValueError: As [`run_rounds`].
    """
    check_least(number=(number, 1))
    _check_arguments(policy, reward_model, prompts, editor, config, eval_pairs)
    if callable(editor) and not isinstance(editor, Editor):
        editor = FunctionEditor(editor)
    path = Path(folder)
    reward_args = for_round(config.reward, number, str(path / "reward_model"))
    ppo_args = for_round(config.ppo, number, str(path / "policy"))
    if ppo_args.hold_length is not False and ppo_args.target_length is None and target_length is not None:
        ppo_args.target_length, ppo_args.hold_length = target_length, True
    settings = {
        "round": number,
        "policy": str(policy),
        "reward_model": str(reward_model),
        "editor": editor.settings if isinstance(editor, Editor) else editor,
        "prompts": fingerprint(prompts),
        "pairs": [fingerprint(part) for part in pairs],
        "eval_pairs": None if eval_pairs is None else fingerprint(eval_pairs),
        **config.settings(),
    }
    lock = lock_folder(path)
    try:
        place = RoundFolder(path, settings)
        if "policy" not in place.figures:
            init_kwargs, progress = config.model_init_kwargs, not ppo_args.disable_tqdm
            tokenizer = load_tokenizer(policy, "tokenizer of the policy", init_kwargs)
            reward_tokenizer = load_reward_tokenizer(reward_model, reward_args)
            data = _prepare(prompts, pairs, eval_pairs, tokenizer, reward_tokenizer, reward_args, ppo_args)
            Schedule.plan(ppo_args, data.prompts)
            place.stage("data", lambda: data.counts)

            own = prompts_of_round(data.prompts, number, config.num_prompts, config.ppo.seed)
            _begin(f"Round {number}: sampling {len(own)} answers", progress)
            place.stage("samples", partial(sample, place, policy, tokenizer, own, ppo_args, init_kwargs))
            _begin(f"Round {number}: editing them", progress)
            place.stage("edits", partial(_edits, place, editor, config, progress))
            _begin(f"Round {number}: training the reward model", progress)
            reward = partial(train_reward_model, place, reward_model, data.pairs, data.eval_pairs)
            place.stage("reward_model", partial(reward, reward_args, config.replay))
            _begin(f"Round {number}: PPO", progress)
            reference = None if first_policy is None or str(first_policy) == str(policy) else first_policy
            reference = reference if config.reference == "first" else None
            ppo = partial(train_policy, place, policy, reference, data.prompts, data.eval_prompts)
            place.stage("policy", partial(ppo, ppo_args, init_kwargs))
    finally:
        lock.release()
    return Round(number, place.edits, place.reward_model, place.policy, place.figures)


class _Data(NamedTuple):
    """What a round trains and is measured on, prepared, and the rows that were kept and dropped of each."""

    prompts: Dataset
    pairs: Dataset | None
    eval_pairs: Dataset | None
    eval_prompts: Dataset | None
    counts: dict[str, Any]


def _prepare(
    prompts: Dataset,
    pairs: Sequence[Dataset],
    eval_pairs: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    reward_tokenizer: PreTrainedTokenizerBase,
    reward_args: TokenRewardConfig,
    ppo_args: FineGrainedPPOConfig,
) -> _Data:
    """All that can be wrong with the data is found here, before the work."""
    counts: dict[str, Any] = {}

    def count(name: str, dropped: DroppedRows) -> None:
        counts[name] = dropped.counts()
        if counts[name]["kept"] < counts[name]["rows"]:
            logger.warning(f"Data set {name}: {dropped.describe()}.")

    def prepared_prompts(dataset: Dataset, name: str) -> Dataset:
        dropped, limit = DroppedRows(REMEDIES), ppo_args.max_prompt_length
        rows = prepare_prompts(dataset, tokenizer, name, ppo_args.dataset_num_proc, limit, dropped)
        count(name, dropped)
        return rows

    def prepared_pairs(dataset: Dataset, name: str) -> Dataset:
        rows, dropped = prepare_pairs(dataset, reward_tokenizer, reward_args, name)
        count(name, dropped)
        return rows

    prompts = prepared_prompts(prompts, "prompts")
    names = [f"pairs {place}" for place in range(1, len(pairs) + 1)]
    parts = [prepared_pairs(part, name) for part, name in zip(pairs, names, strict=True)]
    earlier = concatenate_datasets(parts) if parts else None
    held_out = eval_prompts = None
    if eval_pairs is not None:
        held_out = prepared_pairs(eval_pairs, "eval_pairs")
        eval_prompts = prepared_prompts(eval_pairs, "eval_prompts")
    return _Data(prompts, earlier, held_out, eval_prompts, counts)


def _edits(place: RoundFolder, editor: Editor | str, config: RoundConfig, progress: bool) -> dict[str, Any]:
    if isinstance(editor, Editor):
        return edit(place, editor, config.edit_options, progress)
    if (place.edits / "state.json").exists():
        return read_peoples_edits(place)
    samples, work, edits = (shlex.quote(str(path)) for path in (place.samples, place.path / "annotations", place.edits))
    raise EditsPending(
        f"{place.path} waits for people's edits. They make them on the page of\n"
        f"    trl-tokenreward annotate {samples} {work}\n"
        "Once they are done, save them and run the rounds again:\n"
        f"    trl-tokenreward annotations {work} --save {edits}"
    )


def _check_arguments(
    policy: str | Path,
    reward_model: str | Path,
    prompts: Dataset,
    editor: RoundEditor,
    config: RoundConfig,
    eval_pairs: Dataset | None,
) -> None:
    for what, name in (("policy", policy), ("reward model", reward_model)):
        check_source(name, what)
    if Path(policy, "adapter_config.json").exists():
        raise ValueError(f"The policy {policy} is an adapter: merge it into its model, and name that.")
    if (adapter := saved_adapter(reward_model, {})) is not None:
        check_saved_adapter(adapter, reward_model, {})
    if not isinstance(prompts, Dataset) or not len(prompts):
        raise ValueError(f"`prompts` must be a Dataset with rows, got {prompts!r}.")
    if not (editor == PEOPLE or callable(editor)):
        raise ValueError(f"`editor` must be an Editor, a function, or {PEOPLE!r}, got {editor!r}.")
    if config.edit_options and editor == PEOPLE:
        raise ValueError("`edit_options` has no effect on people: give these options to `trl-tokenreward annotate`.")
    for name, args in (("reward", config.reward), ("ppo", config.ppo)):
        if args.eval_strategy != "no" and eval_pairs is None:
            raise ValueError(f"`eval_strategy={args.eval_strategy!r}` of `{name}` needs `eval_pairs`.")


def _begin(what: str, progress: bool) -> None:
    clear_device_cache(garbage_collection=True)  # of the stage before
    if progress:
        tqdm.write(what, file=sys.stderr)
