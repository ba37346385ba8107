"""Files and folders that outlive a crash: whole or not there, and open in one process at a time."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


LOCK = ".lock"


def lock_folder(folder: Path) -> FileLock:
    """Makes a folder, if there is none, and locks it for this process. The lock ends with `release`, or with the
    process.

    Raises:
        `ValueError`: if it is locked already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"Another process, or another call in this one, has {folder} open: wait until it ends, or name another "
            "folder."
        ) from error
    return lock


def check_own_folder(folder: Path, *names: str) -> None:
    """Raises a `ValueError` if a folder has things in it, but none of `names`, which mark it as this package's."""
    own = {LOCK, *(_unfinished(folder / name).name for name in names)}  # a kill may leave these alone
    others = {path.name for path in folder.iterdir()} - own if folder.exists() else set()
    if others and not others & {*names}:
        raise ValueError(f"`output` is a folder with other things in it, {folder}: name a new one.")


def check_same_settings(path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises a `ValueError`, which names them, if what was begun at `path` had other settings."""
    changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    if changed:
        raise ValueError(
            f"{path} was begun with other settings ({', '.join(changed)}). Go on with those, or name another output."
        )


def check_writable(path: Path) -> None:
    """Checks before the work that something can be written to `path`, whose folder may yet have to be made.

    Raises:
        `ValueError`: if it cannot.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "may not be written to" if folder.is_dir() else "is no folder"
        raise ValueError(f"{path} cannot be written: {folder} {problem}.")


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8. After a crash, or if the disk is full, it is the old one or the new one, and nothing in
    between. When this returns, it is on the disk."""
    new = _unfinished(path)
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _unfinished(path: Path) -> Path:
    """Where [`write_text`] writes what is to be `path`."""
    return path.with_name(f"{path.name}.new")


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to. Once all is written it gets the name `path`; what an error,
    a full disk or a kill leaves unfinished never has that name."""
    new = path.with_name(f".new-{path.name}")  # with its ending, by which writers choose the format
    _remove(new)
    try:
        yield new
        os.replace(new, path)
    except BaseException:
        _remove(new)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
