"""The entry point of the annotation page."""

from pathlib import Path
from typing import Any

from datasets import Dataset


def annotate_dataset(
    dataset: Dataset,
    output: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    password: str | None = None,
    **kwargs: Any,
) -> None:
    """Serves a local web page on which people minimally edit the rejected answer of each row, until it is interrupted.

    The page shows the prompt, the preferred and the rejected answer. While someone types, it shows the edit by word,
    its size, and the result of [`~editing.checks.EditChecks`]. It confirms a text only after that is stored in
    `output`. [`read_annotations`] reads the folder.

    Args:
        dataset (`Dataset`):
            Preference rows in any of the formats of texts or messages that [`TokenRewardTrainer`] takes, or rows of
            `prompt` and `completion`, such as a policy's answers.
        output (`str` or `Path`):
            A new folder, or that of the work to go on with.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            The address to listen on. Any but this machine's own needs a `password`. It is plain http: over a network
            that is not trusted, put it behind a tunnel or a proxy with https.
        port (`int`, *optional*, defaults to `8765`):
            0 takes one that is free.
        password (`str`, *optional*):
            What the page asks for, of at least 8 characters.
        kwargs:
            `checks`, `criteria`, `limit`, `per_row`, `overlap`, `free_after` and `about`, as of
            [`~annotation.store.AnnotationStore`].

    Raises:
        ValueError: For a bad argument or row, or if the folder is in use or is another data set's.
        OSError: If the address cannot be listened on.
        ImportError: If starlette or uvicorn is missing, which the extra `annotate` has.
    """
    try:
        from .server import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is missing: pip install 'trl-tokenreward[annotate]'.") from error
    serve(dataset, output, host=host, port=port, password=password, **kwargs)
