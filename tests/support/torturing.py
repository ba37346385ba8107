"""What the torture tests share: processes that are killed, disks that are full, and rows of all shapes."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import traceback
from contextlib import contextmanager

import pytest


def _run(work, arguments, most_bytes, report):
    os.environ["no_proxy"] = "*"
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write over the limit is an OSError, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        work(*arguments)
        report.send(None)
    except BaseException as error:
        report.send((type(error).__name__, str(error), traceback.format_exc()))


class Child:
    """`work(*arguments)` in a process of its own, whose files may have `most_bytes`."""

    def __init__(self, work, *arguments, most_bytes=None):
        context = multiprocessing.get_context("forkserver")  # which has imported what is slow to import
        context.set_forkserver_preload(["datasets", "trl_tokenreward.editing.edit_dataset", "editing_work"])
        self._receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=_run, args=(work, arguments, most_bytes, send))
        self.process.start()
        send.close()

    def result(self, timeout=60):
        """`None`, or the name of the error's type, its message and the traceback."""
        assert self._receive.poll(timeout), "the process does not end"
        outcome = self._receive.recv()
        self.process.join(timeout)
        return outcome

    def kill(self):
        self.process.kill()
        self.process.join()
        self._receive.close()


@contextmanager
def small_disk(folder, kilobytes):
    """Mounts a disk of that size at a folder; skips the test where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


STRANGE_TEXTS = (
    *(
        "",
        " ",
        "\n\n",
        "a",
        "the answer is bad",
        "\x00",
        "\x1b[2J",
        "\ud83d",
        "\udc00\ud800",
        "e\u0301",
        "🦊",
        "\u202e",
    ),
    *("<edited>", "</edited>", "\n\nHuman: a\n\nAssistant: b", "\n\nAssistant:", "<eos>", "{prompt}", "ไทย", "\u200d"),
    "x" * 5000,
)


def strange_value(chance: random.Random, depth=0):
    """A value of any JSON type, or nearly."""
    kind = chance.randrange(12 if depth < 3 else 8)
    if kind < 4:
        return chance.choice(STRANGE_TEXTS)
    if kind < 8:
        return chance.choice((None, True, 0, -1, 2**40, 1.5, float("nan"), float("inf")))
    if kind < 10:
        return [strange_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = ("role", "content", "start", "end", "\ud800", "other")
    return {chance.choice(names): strange_value(chance, depth + 1) for _ in range(chance.randrange(4))}


def strange_message(chance: random.Random):
    message = {"role": chance.choice(("user", "assistant", "system", "other")), "content": chance.choice(STRANGE_TEXTS)}
    if chance.random() < 0.2:
        message[chance.choice(("role", "content"))] = strange_value(chance)
    return message


def strange_row(chance: random.Random):
    """A preference row in which something may be wrong."""

    def side(messages):
        if chance.random() < 0.15:
            return strange_value(chance)
        if messages:
            return [strange_message(chance) for _ in range(chance.randrange(1, 4))]
        return chance.choice(STRANGE_TEXTS)

    messages = chance.random() < 0.4
    row = {name: side(messages) for name in ("prompt", "chosen", "rejected")}
    for name in ("rejected_spans", "chosen_spans", "margin", "tools", "chat_template_kwargs"):
        if chance.random() < 0.1:
            row[name] = strange_value(chance)
    for name in ("prompt", "chosen"):
        if chance.random() < 0.1:
            del row[name]
    return row
