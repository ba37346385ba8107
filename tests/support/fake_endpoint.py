"""A chat-completions endpoint on a local HTTP server that answers as it is told to: the fixture `serve`, which every
test has through conftest.py."""

import json
import re
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    """`respond(text, request number)` gives the text of the model's answer, or the status, the body and perhaps the
    headers to send."""

    daemon_threads = True

    def __init__(self, respond):
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.bodies, self.headers_seen = [], []
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers_seen.append(dict(self.headers))
            number = len(server.bodies)
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        try:
            response = server.respond(body["messages"][0]["content"], number)
        finally:
            with server.lock:
                server.now -= 1
        headers = {}
        if isinstance(response, str):
            usage = {"prompt_tokens": 100, "completion_tokens": 7}
            response = 200, json.dumps({"choices": [{"message": {"content": response}}], "usage": usage})
        if len(response) == 3:
            *response, headers = response
        try:
            self.send_response(response[0])
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response[1].encode())
        except BrokenPipeError:
            pass  # the client has hung up

    def log_message(self, *args):
        pass


@contextmanager
def running(respond):
    server = Server(respond)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def serve(monkeypatch):
    """`serve(respond)` gives a running server, with no proxy in between and no key in the environment."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ExitStack() as servers:
        yield lambda respond: servers.enter_context(running(respond))


@contextmanager
def misbehaving(misbehave, with_body=False):
    """The address of a server that reads a request and then does `misbehave(connection)` to the client, or
    `misbehave(connection, the request's body)`."""

    def serve(connection):
        with connection, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(2**16)
            head, _, body = request.partition(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
            while len(body) < length:
                body += connection.recv(2**16)
            misbehave(*([connection, body] if with_body else [connection]))

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _forever(connection, start, part, pause=0.0):
    connection.sendall(start)
    while True:
        connection.sendall(part)
        time.sleep(pause)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NESTED = b"[" * 200_000 + b"]" * 200_000


# What the endpoint does with a connection once it has the request, and what is said of it.
FAULTS = {
    "silent": (lambda connection: time.sleep(5), "no whole answer within 1 seconds"),
    "drips-a-header": (lambda c: _forever(c, OK, b"X", 0.1), "no whole answer within 1 seconds"),
    "drips-a-body": (lambda c: _forever(c, OK + b"\r\n", b" ", 0.1), "no whole answer within 1 seconds"),
    "continues": (lambda c: _forever(c, b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "no whole answer within 1 seconds"),
    "continues-at-once": (lambda c: _forever(c, b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "no whole answer within"),
    "endless-body": (lambda c: _forever(c, OK + b"\r\n", b" " * 2**20), "sent more than 2097152 bytes|no whole answer"),
    "endless-chunks": (
        lambda c: _forever(c, OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b" " * 2**20 + b"\r\n"),
        "sent more than 2097152 bytes|no whole answer",
    ),
    "endless-header": (lambda c: _forever(c, OK + b"X-Header: ", b"x" * 2**16), "RemoteProtocolError at "),
    "endless-headers": (lambda c: _forever(c, OK, b"X-Header: x\r\n" * 1000), "RemoteProtocolError at "),
    "negative-chunk": (
        lambda c: c.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n"),
        "RemoteProtocolError at ",
    ),
    "negative-length": (lambda c: c.sendall(OK + b"Content-Length: -5\r\n\r\nhello"), "RemoteProtocolError at "),
    "cut-off": (lambda c: c.sendall(OK + b"Content-Length: 500\r\n\r\n{"), "RemoteProtocolError at "),
    "hangs-up": (lambda c: None, "RemoteProtocolError at |ReadError at "),
    "no-http": (lambda c: c.sendall(b"\x00\xff\r\n\r\n" * 10), "RemoteProtocolError at "),
    "nested": (lambda c: c.sendall(OK + b"\r\n" + NESTED), "sent no chat completion, but '\\[\\["),
    "not-utf-8": (lambda c: c.sendall(OK + b'\r\n{"choices": "\xff"}'), "sent no chat completion, but "),
    "nested-error": (lambda c: c.sendall(b"HTTP/1.1 400 Bad\r\n\r\n" + NESTED), "answered with status 400: '\\[\\["),
}  # fmt: skip


def mixed(faults, respond, chance):
    """As `misbehaving`: half of the requests get one of the faults, the others what `respond(text)` gives."""

    def answer(connection, body):
        if chance.random() < 0.5:
            chance.choice(faults)(connection)
        else:
            text = respond(json.loads(body)["messages"][0]["content"])
            connection.sendall(OK + b"\r\n" + json.dumps({"choices": [{"message": {"content": text}}]}).encode())

    return misbehaving(answer, with_body=True)
