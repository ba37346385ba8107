"""Data sets by path or by name."""

from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_COMPRESSION = {".gz", ".bz2", ".xz", ".zst"}


def load_split(
    name: str | Path, split: str, config: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Load one split of a data set.

    Args:
        name (`str` or `Path`):
            A JSON, JSON Lines, CSV or Parquet file, compressed or not; a folder that `datasets` saved; a folder that
            `load_dataset` understands; or a name on the Hub.
        split (`str`):
            Split to take. A file has one split, whatever it is called here.
        config (`str`, *optional*):
            Configuration (`data_dir`) of a data set on the Hub, such as `"harmless-base"` of `Anthropic/hh-rlhf`.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read it as a stream.

    Raises:
        ValueError: If a file has an unknown ending, or the data set has no such split.
    """
    path = Path(name)
    if path.is_file():
        suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSION]
        if not suffixes or suffixes[-1] not in _FORMATS:
            raise ValueError(f"{name}: a file must end in one of {sorted(_FORMATS)}, compressed or not.")
        return load_dataset(_FORMATS[suffixes[-1]], data_files=str(path), split="train", streaming=streaming)
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        dataset = load_from_disk(str(path))
        if streaming:
            dataset = dataset.to_iterable_dataset() if isinstance(dataset, Dataset) else dataset
    else:
        dataset = load_dataset(str(name), data_dir=config, streaming=streaming)
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        if split not in dataset:
            raise ValueError(f"{name} has no split {split!r}, only {sorted(dataset)}.")
        dataset = dataset[split]
    return dataset
