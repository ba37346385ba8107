"""Checkpoints that were cut short, by a kill or a full disk, are told from whole ones."""

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)


def begin_checkpoint(trainer: Trainer, trial: Any) -> None:
    """Have the checkpoint that is now written count as cut short until it is whole.

    Trainer writes its state last, so a checkpoint with a state is whole. One that an earlier run left in the same place
    loses its state here.
    """
    if trainer.args.should_save:
        folder = Path(trainer._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}")
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)


def checkpoint_to_resume(
    trainer: Trainer, resume_from_checkpoint: str | bool | None, needed: Sequence[str] = ()
) -> str | bool | None:
    """The checkpoint that a training goes on from.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
        resume_from_checkpoint (`str`, `bool` or `None`):
            The argument of `train`. `True` stands for the last whole checkpoint in the output folder. A warning names
            later ones, which were cut short. `"True"` and `"False"`, which command lines give, are taken for these.
        needed (`Sequence[str]`, *optional*):
            Files that the trainer writes into a checkpoint besides those that every trainer does.

    Raises:
        ValueError: If there is no such folder, or if the checkpoint, or with `True` every one, lacks a file or has a
            damaged one; it names the file.
    """
    if isinstance(resume_from_checkpoint, str):
        as_bool = {"true": True, "false": False}
        resume_from_checkpoint = as_bool.get(resume_from_checkpoint.lower(), resume_from_checkpoint)
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return resume_from_checkpoint
    needed = [TRAINER_STATE_NAME, *needed]
    if not trainer.is_deepspeed_enabled:  # which has a format of its own and checks it
        # FSDP has files or folders that begin with the same word.
        needed = [f"{Path(OPTIMIZER_NAME).stem}*", SCHEDULER_NAME, *needed]
    if resume_from_checkpoint is not True:
        if not Path(resume_from_checkpoint).is_dir():
            raise ValueError(
                f"There is no folder {resume_from_checkpoint} to resume from. Give that of a checkpoint, or `True` for "
                f"the last one in {trainer.args.output_dir}."
            )
        if damage := find_damage(resume_from_checkpoint, needed):
            raise ValueError(
                f"The checkpoint {resume_from_checkpoint} cannot be resumed: {damage}. Resume from an earlier one."
            )
        return resume_from_checkpoint
    problems: list[str] = []
    for checkpoint in _latest_first(Path(trainer.args.output_dir)):
        damage = find_damage(checkpoint, needed)
        if damage is None:
            if problems:
                logger.warning(f"Resuming from {checkpoint}, the last whole checkpoint: {'; '.join(problems)}.")
            return str(checkpoint)
        problems.append(f"{checkpoint.name} cannot be resumed, {damage}")
    if problems:
        raise ValueError(f"No checkpoint in {trainer.args.output_dir} is whole: {'; '.join(problems)}.")
    return True  # Trainer says that there is none.


def find_damage(checkpoint: str | Path, needed: Sequence[str] = ()) -> str | None:
    """What is wrong with the files of a checkpoint, at any depth: one that is missing, was cut short, or, for files of
    `torch.save`, has changed since it was written. `needed` are patterns of file names. `None` if nothing is wrong."""
    checkpoint = Path(checkpoint)
    for pattern in needed:
        if not any(checkpoint.glob(pattern)):
            return f"it has no {pattern}"
    for path in sorted(checkpoint.rglob("*")):
        try:
            missing = list(_missing_shards(path)) if path.is_file() else []
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{path.relative_to(checkpoint)} is damaged ({error})"
        if missing:
            return f"it has no {missing[0].relative_to(checkpoint)}"
    return None


def _missing_shards(path: Path) -> Iterator[Path]:
    """Read enough of a file to see that it is whole. Gives the files that it names and that are not there."""
    if path.suffix == ".json":
        content = json.loads(path.read_bytes())
        if path.name.endswith(".index.json"):
            yield from (
                shard for name in content["weight_map"].values() if not (shard := path.with_name(name)).exists()
            )
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt"):  # compares the file's length with its header
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(path) as archive:
            if member := archive.testzip():  # torch.load does not compare checksums
                raise ValueError(f"wrong checksum of {member}")


def _latest_first(folder: Path) -> list[Path]:
    numbered = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in folder.glob("*")}
    steps = {path: int(match[1]) for path, match in numbered.items() if match and path.is_dir()}
    return sorted(steps, key=lambda path: steps[path], reverse=True)
