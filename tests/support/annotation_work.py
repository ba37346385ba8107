"""A server of the annotation page in a process of its own, for the torture tests."""

import time

from annotating import pairs
from trl_tokenreward.annotation.server import listen, make_server
from trl_tokenreward.annotation.store import AnnotationStore


ROWS = 200


def serve_rows(output, port_file):
    store = AnnotationStore(pairs(*(f"the answer number {i} is very bad indeed" for i in range(ROWS))), output)
    with listen("127.0.0.1", 0) as listener:
        server = make_server(store)
        with open(port_file, "w") as file:
            print(listener.getsockname()[1], file=file)
        server.run(sockets=[listener])
    store.close()


def wait_for_port(port_file, child):
    deadline = time.monotonic() + 60
    while not (port_file.exists() and port_file.read_text().endswith("\n")):
        assert child.process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    return f"http://127.0.0.1:{port_file.read_text().strip()}"
