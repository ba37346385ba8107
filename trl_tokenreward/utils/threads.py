"""Work in threads that ends with the run that it is for."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def stopping_threads(number: int, stopped: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """`number` threads. After an error or Ctrl+C within, what still waits is cancelled, and `stopped` is set, at which
    what is under way should end: it would be paid for and lost."""
    stopped.clear()
    executor = ThreadPoolExecutor(number)
    try:
        yield executor
    except BaseException:
        stopped.set()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
