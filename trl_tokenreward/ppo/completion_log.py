"""Sampled completions of a training, logged with the score, reward, KL, value and advantage of every token."""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..reward_model.scoring import token_texts
from ..views.scored_rows import ScoredRows
from ..views.scored_text import ScoredRow, ScoredText
from .prompts import real_ids
from .rollout import Rollout
from .trackers import log_to_trackers


FOLDER = "completions"
# Where TRL's GRPO writes its own table to `FOLDER`.
GRPO_FOLDER = "token_completions"
# Column of a record to what the series is called.
_SERIES = {"scores": "score", "rewards": "reward", "kl": "KL", "values": "value", "advantages": "advantage"}
_TOTALS = {"scores": "score", "rewards": "reward", "kl": "KL"}
_FILE = re.compile(r"completions_(\d+)\.parquet")
_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("step", "update")),
        *((name, pa.string()) for name in ("prompt", "completion")),
        ("ended", pa.bool_()),
        ("tokens", pa.list_(pa.string())),
        *((name, pa.list_(pa.float64())) for name in _SERIES),
    ]
)


class CompletionLog(TrainerCallback):
    """
    Writes sampled completions to a folder of `output_dir` whenever the trainer logs, and to TensorBoard, trackio and
    wandb if they are on. Only the main process writes.

    A log has one file, `completions_<global step>.parquet`, with rows of the last update before it. When a training
    begins or is resumed, files of later steps are removed: they come from an earlier run.

    Scores are those of the reward model. Rewards are the scores after scaling, centring and clipping, less the KL
    penalty.

    Of an update's completions those are kept whose prompts have the smallest checksums. So a prompt that was kept once
    is kept nearly whenever it comes up again, on any number of processes and after resuming, and one can see what
    becomes of its completions.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer, whose callback it is.
        number (`int`):
            How many completions of an update are kept.
        folder (`str`, *optional*, defaults to `"completions"`):
            The folder's name.
    """

    def __init__(self, trainer: Trainer, number: int, folder: str = FOLDER):
        self.trainer, self.number, self.folder = trainer, number, folder
        self._collected: list[dict[str, Any]] = []

    def collect_rollout(self, update: int, rollout: Rollout) -> None:
        """[`~CompletionLog.collect`] of a rollout of PPO."""
        series = {
            "scores": rollout.raw_token_scores,
            "rewards": rollout.token_level_rewards,
            "kl": rollout.kl,
            "values": rollout.values,
            "advantages": rollout.advantages,
        }
        self.collect(
            update, real_ids(*rollout.prompts), rollout.completion_ids, rollout.completion_mask, rollout.ended, series
        )

    def collect(
        self,
        update: int,
        prompts: Sequence[list[int]],
        completion_ids: Tensor,
        completion_mask: Tensor,
        ended: Tensor,
        series: Mapping[str, Tensor],
    ) -> None:
        """Takes rows of an update, in place of those of the update before.

        Args:
            update (`int`):
                Its number, from 0.
            prompts (`Sequence[list[int]]`):
                Token ids of B prompts.
            completion_ids, completion_mask (`Tensor`):
                Shape (B, T).
            ended (`Tensor`):
                Shape (B,): whether each completion has ended by itself.
            series (`Mapping[str, Tensor]`):
                Numbers of every token, each of shape (B, T): some of `"scores"`, `"rewards"`, `"kl"`, `"values"` and
                `"advantages"`.
        """
        if not self.trainer.accelerator.is_main_process:
            return
        tokenizer = self.trainer.processing_class
        order = sorted(range(len(prompts)), key=lambda row: zlib.crc32(repr(prompts[row]).encode()))
        self._collected = []
        for row in order[: self.number]:
            inside = completion_mask[row].bool()
            tokens = token_texts(completion_ids[row][inside].tolist(), tokenizer, context=prompts[row])
            record = {
                "update": update + 1,
                "prompt": tokenizer.decode(prompts[row], skip_special_tokens=True),
                "completion": "".join(tokens),
                "ended": bool(ended[row]),
                "tokens": tokens,
            }
            numbers = {name: values[row][inside].tolist() for name, values in series.items()}
            self._collected.append({**record, **numbers})

    def on_train_begin(self, args, state, control, **kwargs):
        self._collected = []
        if state.is_world_process_zero:
            for step, path in _files(Path(args.output_dir, self.folder)).items():
                if step > state.global_step:
                    path.unlink()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or not self._collected:
            return
        records, self._collected = [{"step": state.global_step, **record} for record in self._collected], []
        folder = Path(args.output_dir, self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"completions_{state.global_step:05d}.parquet"
        # Under another name until it is whole: whoever looks while the training runs finds whole files only.
        partial = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(records, _SCHEMA), partial)
        partial.replace(path)
        log_to_trackers(self.trainer.callback_handler.callbacks, _scored(records), state.global_step)


def read_completions(output_dir: str | Path) -> ScoredRows:
    """The completions that a training with `log_completions=True` has logged so far.

    Args:
        output_dir (`str` or `Path`):
            The training's.

    Raises:
        ValueError: If there are none, or if they are whole completions of a GRPO run without rewards of tokens.
    """
    files = _files(Path(output_dir, GRPO_FOLDER)) or _files(Path(output_dir, FOLDER))
    if not files:
        raise ValueError(
            f"{output_dir} has no folder {FOLDER!r} with what a training has logged: train with `log_completions=True`."
        )
    if "tokens" not in pq.read_schema(next(iter(files.values()))).names:
        raise ValueError(
            f"{output_dir} has TRL's table of completions in {FOLDER!r}, without their tokens: GRPO logs tokens where "
            "a reward has them."
        )
    records = [record for path in files.values() for record in pq.read_table(path, schema=_SCHEMA).to_pylist()]
    return ScoredRows(f"Completions of {Path(output_dir).resolve().name}", _scored(records))


def _files(folder: Path) -> dict[int, Path]:
    """Step to the file of its log, in order."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := _FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))


def _scored(records: list[dict[str, Any]]) -> list[ScoredRow]:
    rows = []
    for record in records:
        length = len(record["tokens"])
        logged = [column for column in _SERIES if record.get(column) is not None]
        numbers = {name: sum(record[column]) for column, name in _TOTALS.items() if column in logged}
        text = ScoredText(
            record["tokens"],
            {_SERIES[column]: record[column] for column in logged},
            f"{length} tokens" if record["ended"] else f"{length} tokens, cut off",
            numbers,
        )
        rows.append(
            ScoredRow(f"Update {record['update']}, step {record['step']}", record["prompt"], [text], record["step"])
        )
    return rows
