"""Completions of evaluation prompts, their scores, and their KL to the reference policy."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset

from ..nn.finite import not_finite, raise_together
from ..nn.masked import masked_sum
from .collector import Readings, RolloutCollector
from .functional import kl_per_token
from .prompts import Prompts
from .rollout import Completions
from .sampling import uniforms
from .schedule import EVALUATION, share_of


if TYPE_CHECKING:
    from pandas import DataFrame

EvalDataset: TypeAlias = Dataset | IterableDataset

METRICS = ("objective/scores", "objective/kl", "completions/mean_length", "completions/ended")


class EvaluationBatch(NamedTuple):
    """Sampled completions of this process's rows of a batch.

    Attributes:
        counted (`int`):
            How many rows count. A process without rows of its own works on another's first, which does not count.
        numbers (`list[int]`):
            The rows' numbers in the data set.
        prompts ([`~ppo.prompts.Prompts`]):
            The prompts.
        completions ([`~ppo.rollout.Completions`]):
            The completions.
        readings ([`~ppo.collector.Readings`]):
            What the models give for them.
    """

    counted: int
    numbers: list[int]
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
    share = share_of(len(rows), collector.accelerator)
    counted = len(share)
    local = share or [0]  # all processes have to take part in a forward pass
    rows, numbers = [rows[i] for i in local], [start + i for i in local]
    prompts = collector.collate(rows)
    seed, length = (EVALUATION, collector.args.seed), collector.args.response_length
    uniform = torch.cat([uniforms(seed, range(number, number + 1), length) for number in numbers])
    completions = collector.generate(prompts, uniform, temperature)
    readings = collector.read(prompts, completions, rows)
    made = readings.by_model()
    if collector.vllm_engine is None:  # vLLM may have no number for a token
        made = {"a log-probability of `model`": completions.per_token_logps, **made}
    raise_together(not_finite("Evaluation", made, completions.mask, numbers), collector.accelerator)
    return EvaluationBatch(counted, numbers, prompts, completions, readings)


def evaluate(collector: RolloutCollector, dataset: EvalDataset, temperature: float) -> tuple[dict[str, float], int]:
    """Means of [`METRICS`] over the completions of all prompts, and the number of prompts; of several rewards, also
    `rewards/<name>/mean` of each.

    Scores are raw: neither shaped nor spread. The KL is that of the sampled completions at the training temperature.
    """
    rewards, table = collector.rewards, []
    for batch in evaluation_batches(collector, dataset, temperature):
        mask = batch.completions.mask
        logps = collector.inference.policy_logps(batch.prompts, batch.completions)
        problem = not_finite("Evaluation", {"a log-probability of `model`": logps}, mask, batch.numbers)
        raise_together(problem, collector.accelerator)
        kl = kl_per_token(logps, batch.readings.ref_per_token_logps, collector.args.kl_estimator)
        columns = (
            masked_sum(rewards.total(batch.readings.scores), mask, dim=1),
            masked_sum(kl, mask, dim=1),
            mask.sum(1),
            batch.completions.ended,
            *rewards.totals(batch.readings.scores, mask).values(),
        )
        table.extend(torch.stack([c.float() for c in columns], dim=1)[: batch.counted].tolist())
    table = gather_object(table)
    if not table:
        raise ValueError("The evaluation data set is empty.")
    names = (*METRICS, *(f"rewards/{reward.name}/mean" for reward in rewards.logged))
    return dict(zip(names, np.mean(table, axis=0).tolist(), strict=True)), len(table)


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
    for counted, _, prompts, completions, readings in chain.from_iterable(batches):
        scores = collector.rewards.total(readings.scores)
        for i in range(counted):
            table.append(
                {
                    "query": decode(prompts.ids[i][prompts.mask[i].bool()], skip_special_tokens=True),
                    "model response": decode(completions.ids[i][completions.mask[i].bool()]),
                    "score": float(masked_sum(scores[i], completions.mask[i])),
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
