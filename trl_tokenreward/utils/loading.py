"""Loads data sets and tokenizers by path or by name on the Hub, and saves data sets."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Json,
    List,
    Value,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig
from safetensors import SafetensorError

from .files import check_writable, new_path


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# In CSV, a text is a text: "42" is no number, and "NA" and "None" are not nothing.
_CSV = {
    "converters": dict.fromkeys(("prompt", "chosen", "rejected", "completion", "text"), str),
    "keep_default_na": False,
    "na_values": [""],
}
# Arguments of a model's `from_pretrained` that are of the repository, and so its tokenizer's too.
_OF_REPOSITORY = ("cache_dir", "force_download", "local_files_only", "revision", "token", "trust_remote_code")
_COMPRESSION = {".gz", ".bz2", ".xz", ".zst"}


def check_source(name: str | os.PathLike, what: str) -> None:
    """Checks, without a request to the Hub, that `name` exists as a path or may be a name on the Hub.

    Args:
        name (`str` or `Path`):
            A path, or a name on the Hub, `name` or `owner/name`.
        what (`str`):
            What it should be, for the error.

    Raises:
        ValueError: If nothing is there, and it is no name on the Hub either: it ends as a data file does, has other
            parts than those two, or lies in a folder that is there.
    """
    path = Path(name)
    if not str(name):  # such as an empty variable of a shell; as a path it is the folder that one is in
        raise ValueError(f"The name of the {what} is empty.")
    if path.exists():
        return
    is_file = path.suffix in {*_FORMATS, *_COMPRESSION, ".tsv", ".txt"}
    is_path = str(name).startswith((".", "/", "~")) or len(path.parts) > 2
    if is_file or is_path or (len(path.parts) == 2 and path.parent.exists()):
        raise ValueError(f"There is no {what} at {name}.")


@contextmanager
def loading(
    name: str | os.PathLike,
    what: str,
    errors: tuple[type[Exception], ...] = (OSError, SafetensorError),  # the latter of weights that were cut short
) -> Iterator[None]:
    """Within it, `name` is loaded. What goes wrong may be about a connection, or a package, and name nothing.

    Raises:
        ValueError: If nothing is there, see [`check_source`], or it cannot be read. The error names it.
    """
    check_source(name, what)
    try:
        yield
    except errors as error:
        raise ValueError(f"No {what} could be loaded from {name}: {error}") from error


def load_tokenizer(
    name: str | os.PathLike, what: str = "tokenizer", init_kwargs: Mapping[str, Any] | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, or of a name on the Hub. Code that is there runs only with `trust_remote_code`; if it
    were unset, transformers would ask on standard input, which may be a pipe that says yes.

    Args:
        name (`str` or `os.PathLike`):
            The folder or name.
        what (`str`, *optional*, defaults to `"tokenizer"`):
            What an error calls it.
        init_kwargs (`Mapping[str, Any]`, *optional*):
            What the model at the same place is loaded with. Such as `revision`, `token` and `trust_remote_code` count.

    Raises:
        ValueError: If there is none, or it cannot be loaded. The error names it.
    """
    from transformers import AutoTokenizer

    given = {name: value for name, value in (init_kwargs or {}).items() if name in _OF_REPOSITORY}
    with loading(name, what, (OSError, ValueError)):
        return AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **given})


def load_split(
    name: str | Path, split: str, config: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Load one split of a data set.

    Args:
        name (`str` or `Path`):
            A JSON, JSON Lines, CSV or Parquet file, compressed or not; a folder that `datasets` saved; a folder that
            `load_dataset` understands; or a name on the Hub.
        split (`str`):
            Split to take. A file has one, `"train"`; for several, put `train.jsonl` and `test.jsonl` into a folder.
        config (`str`, *optional*):
            Configuration of a data set on the Hub, or its folder where it has none of that name, such as
            `"harmless-base"` of `Anthropic/hh-rlhf`. Not for files.
        streaming (`bool`, *optional*, defaults to `False`):
            If `True`, reads it as a stream.

    Raises:
        ValueError: If there is no such file or folder, a file has an unknown ending, is asked for a configuration or
            cannot be read, for example because it is empty or cut off, or the data set has no such split or no rows.
            The rest of a stream is not read here.
    """
    dataset = _load_split(name, split, config, streaming)
    with _reading(name):
        next(iter(dataset))
    return dataset


def _load_split(name: str | Path, split: str, config: str | None, streaming: bool) -> Dataset | IterableDataset:
    path = Path(name)
    if path.is_file():
        if config is not None:
            raise ValueError(f"{name} is a file, so the configuration {config!r} has no effect.")
        if split != "train":
            raise ValueError(
                f"{name} is a file and has one split, 'train'. For a split {split!r}, put files named after the "
                f"splits, such as {split}.jsonl, into a folder and name the folder."
            )
        suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSION]
        if not suffixes or suffixes[-1] not in _FORMATS:
            raise ValueError(f"{name}: a file must end in one of {sorted(_FORMATS)}, compressed or not.")
        with _reading(name):
            format = _FORMATS[suffixes[-1]]
            load = partial(load_dataset, format, data_files=str(path), split="train", streaming=streaming)
            return _with_dates_as_texts(load) if format == "json" else load(**(_CSV if format == "csv" else {}))
    check_source(name, "data set")
    with _reading(name):
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            dataset = load_from_disk(str(path))
        else:
            dataset = _load_named(str(name), split, config, streaming)
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        if split not in dataset:
            raise ValueError(f"{name} has no split {split!r}, only {sorted(dataset)}.")
        dataset = dataset[split]
    if streaming and isinstance(dataset, Dataset):  # what was saved to disk is loaded whole
        dataset = dataset.to_iterable_dataset()
    return dataset


def _with_dates_as_texts(load: Callable[..., Any]) -> Dataset | IterableDataset:
    """What `load` reads from JSON, which has texts and no dates. Of a column that looks like dates alone, pyarrow makes
    times, which no longer say how they were written: such a column is read again."""
    dataset = load()
    if dataset.features is None:  # of a list, which is not read before the first row, and is no stream
        dataset = load(streaming=False).to_iterable_dataset()
    texts = {column: _as_texts(kind) for column, kind in dataset.features.items()}
    dates = [column for column, kind in dataset.features.items() if kind != texts[column]]
    if not dates:
        return dataset
    as_they_are = Features({**dataset.features, **dict.fromkeys(dates, Json())})
    return load(features=as_they_are).map(dict, features=Features(texts))


def _as_texts(kind: Any) -> Any:
    """A feature, with texts in the place of times."""
    if isinstance(kind, dict):
        return {name: _as_texts(part) for name, part in kind.items()}
    if isinstance(kind, List):
        return List(_as_texts(kind.feature), length=kind.length)
    return Value("string") if isinstance(kind, Value) and kind.dtype.startswith("timestamp") else kind


def _load_named(
    name: str, split: str, config: str | None, streaming: bool
) -> Dataset | IterableDataset | DatasetDict | IterableDatasetDict:
    """The split, or all where there is no such split, or what they are was not known before."""
    is_folder = config is not None and config not in get_dataset_config_names(name)
    part: dict[str, Any] = {"data_dir": config} if is_folder else {"name": config}
    load = partial(load_dataset, name, **part, streaming=streaming)
    if not Path(name).is_dir():  # the Hub is not asked twice
        return load()
    # `datasets` decides by the files of a folder what they are.
    builder = load_dataset_builder(name, **part)
    of = builder.config
    if isinstance(of, JsonConfig) and builder.info.features is None and split in of.data_files:
        # Alone, because what is a text in one split may look like dates in another.
        files = {split: [*of.data_files[split]]}
        read = {"field": of.field, "encoding": of.encoding, "encoding_errors": of.encoding_errors}
        alone = partial(load_dataset, "json", data_files=files, split=split, streaming=streaming, **read)
        return _with_dates_as_texts(alone)
    return load(**(_CSV if isinstance(of, CsvConfig) else {}))


@contextmanager
def _reading(name: str | Path) -> Iterator[None]:
    """Names the data in the errors of reading it."""
    try:
        yield
    except StopIteration as error:
        raise ValueError(f"{name} has no rows.") from error
    except DatasetGenerationError as error:  # says nothing itself; what went wrong is its cause
        raise ValueError(f"{name} cannot be read: {error.__cause__ or error}") from error
    except (ValueError, TypeError, LookupError, EOFError, OSError) as error:
        if not Path(name).exists():  # the Hub's own errors name what they are about
            raise
        if "corresponds to no data" in str(error):
            raise ValueError(f"{name} has no rows.") from error
        raise ValueError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def fingerprint(dataset: Dataset) -> str:
    """A hash of all rows, independent of where the data set is stored."""
    digest = hashlib.sha256()
    for row in dataset:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def check_output(path: str | Path) -> None:
    """Checks before the work that [`save_dataset`] can save to `path`.

    Raises:
        ValueError: If something is there already, the name has another ending than `.jsonl` or `.parquet`, or nothing
            can be written there.
    """
    if Path(path).suffix not in ("", ".jsonl", ".parquet"):
        raise ValueError(f"{path}: a file must end in .jsonl or .parquet, and a folder has no ending.")
    if Path(path).exists():
        raise ValueError(f"{path} exists already: remove it, or give another name.")
    check_writable(Path(path))


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Save a data set, by the name's ending, as JSON Lines (`.jsonl`), as Parquet (`.parquet`), or in a folder by
    `save_to_disk` (none). [`load_split`] reads all three.

    Raises:
        ValueError: As [`check_output`].
    """
    check_output(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_path(path) as new:
        if path.suffix == ".jsonl":
            dataset.to_json(new, force_ascii=False)
        elif path.suffix == ".parquet":
            dataset.to_parquet(new)
        else:
            dataset.save_to_disk(str(new))
