"""Data sets to annotate, and the page's server in a thread."""

import threading
import time
from contextlib import contextmanager

import pytest
from datasets import Dataset

from trl_tokenreward.annotation.store import AnnotationStore


def pairs(*answers):
    rows = [{"prompt": f"p{i}", "chosen": f"better {i}", "rejected": answer} for i, answer in enumerate(answers)]
    return Dataset.from_list(rows)


@contextmanager
def opened(dataset, output, **kwargs):
    store = AnnotationStore(dataset, output, **kwargs)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def serving(store, password=None, port=0):
    """Gives the server's address."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra: annotate)")
    from trl_tokenreward.annotation.server import listen, make_server

    with listen("127.0.0.1", port) as listener:
        server = make_server(store, password)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
