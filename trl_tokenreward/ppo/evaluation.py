"""Completions of evaluation prompts, their scores, and their KL to the reference policy."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset

from ..nn.masked import masked_sum
from .collector import Readings, RolloutCollector
from .functional import kl_per_token
from .prompts import Prompts
from .rollout import Completions
from .sampling import uniforms
from .schedule import EVALUATION


if TYPE_CHECKING:
    from pandas import DataFrame

EvalDataset: TypeAlias = Dataset | IterableDataset

METRICS = ("objective/scores", "objective/kl", "completions/mean_length", "completions/ended")


class EvaluationBatch(NamedTuple):
    """Sampled completions of this process's rows of a batch.

    Attributes:
        counted (`int`):
            How many rows count. A process without rows of its own works on another's first, which does not count.
        prompts ([`~ppo.prompts.Prompts`]):
            The prompts.
        completions ([`~ppo.rollout.Completions`]):
            The completions.
        readings ([`~ppo.collector.Readings`]):
            What the models give for them.
    """

    counted: int
    prompts: Prompts
    completions: Completions
    readings: Readings


def select_dataset(
    given: EvalDataset | dict[str, EvalDataset] | str | None,
    known: EvalDataset | dict[str, EvalDataset] | None,
    caller: str,
) -> EvalDataset | dict[str, EvalDataset]:
    """The data set that an argument stands for: itself, one of the trainer's by name, or the trainer's.

    Args:
        given (`Dataset`, `IterableDataset`, `dict`, `str` or `None`):
            The argument.
        known (`Dataset`, `IterableDataset`, `dict` or `None`):
            The trainer's evaluation data.
        caller (`str`):
            Who asks, for the error.

    Raises:
        ValueError: If there is no such data set.
    """
    if isinstance(given, str):
        if not isinstance(known, dict) or given not in known:
            raise ValueError(f"There is no evaluation data set {given!r}.")
        given = known[given]
    given = known if given is None else given
    if given is None:
        raise ValueError(f"{caller} needs an `eval_dataset`.")
    return given


def evaluation_batches(
    collector: RolloutCollector, dataset: EvalDataset, temperature: float
) -> Iterator[EvaluationBatch]:
    """Sampled completions of prepared prompts, batch by batch. The last batch may be short; the processes then share it
    as evenly as possible."""
    # The policy may have changed since the last rollout: by steps, or by a checkpoint that was loaded.
    collector.sync()
    size = collector.args.per_device_eval_batch_size * collector.accelerator.num_processes
    rows, start = [], 0
    for row in dataset:
        rows.append(row)
        if len(rows) == size:
            yield _evaluate_rows(collector, rows, start, temperature)
            rows, start = [], start + size
    if rows:
        yield _evaluate_rows(collector, rows, start, temperature)


def _evaluate_rows(
    collector: RolloutCollector, rows: list[dict[str, Any]], start: int, temperature: float
) -> EvaluationBatch:
    with collector.accelerator.split_between_processes(list(range(len(rows)))) as local:
        counted = len(local)
        local = local or [0]
    rows = [rows[i] for i in local]
    prompts = collector.collate(rows)
    seed, length = (EVALUATION, collector.args.seed), collector.args.response_length
    numbers = torch.cat([uniforms(seed, range(start + i, start + i + 1), length) for i in local])
    completions = collector.generate(prompts, numbers, temperature)
    return EvaluationBatch(counted, prompts, completions, collector.read(prompts, completions, rows))


def evaluate(collector: RolloutCollector, dataset: EvalDataset, temperature: float) -> tuple[dict[str, float], int]:
    """Means of [`METRICS`] over the completions of all prompts, and the number of prompts.

    Scores are raw: neither shaped nor spread. The KL is that of the sampled completions at the training temperature.
    """
    table = []
    for batch in evaluation_batches(collector, dataset, temperature):
        mask = batch.completions.mask
        logps = collector.inference.policy_logps(batch.prompts, batch.completions)
        kl = kl_per_token(logps, batch.readings.ref_per_token_logps, collector.args.kl_estimator)
        columns = (
            masked_sum(batch.readings.scores.values, mask, dim=1),
            masked_sum(kl, mask, dim=1),
            mask.sum(1),
            batch.completions.ended,
        )
        table.extend(torch.stack([c.float() for c in columns], dim=1)[: batch.counted].tolist())
    table = gather_object(table)
    if not table:
        raise ValueError("The evaluation data set is empty.")
    return dict(zip(METRICS, np.mean(table, axis=0).tolist(), strict=True)), len(table)


def completion_table(
    collector: RolloutCollector, datasets: list[EvalDataset], temperature: float, sampling: bool
) -> "DataFrame":
    """Prompts, completions and scores of all processes.

    Args:
        sampling (`bool`):
            Whether to stop after the first batch of each data set.

    Returns:
        `pandas.DataFrame`: Columns `query`, `model response` and `score`.
    """
    import pandas as pd

    decode, most = collector.processing_class.decode, 1 if sampling else None
    batches = (islice(evaluation_batches(collector, dataset, temperature), most) for dataset in datasets)
    table = []
    for counted, prompts, completions, readings in chain.from_iterable(batches):
        for i in range(counted):
            table.append(
                {
                    "query": decode(prompts.ids[i][prompts.mask[i].bool()], skip_special_tokens=True),
                    "model response": decode(completions.ids[i][completions.mask[i].bool()]),
                    "score": float(masked_sum(readings.scores.values[i], completions.mask[i])),
                }
            )
    return pd.DataFrame(gather_object(table))


def print_table(df: "DataFrame") -> None:
    """Print a table on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for column in df.columns:
        table.add_column(column)
    for row in df.itertuples(index=False):
        table.add_row(*(Text(str(cell)) for cell in row))  # Text, since completions may look like rich's markup.
    Console().print(table)
