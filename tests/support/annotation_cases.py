"""What the tests of annotation share: annotation cases."""

import json
import urllib.error
import urllib.request


ANSWERS = [f"the answer number {i} is very bad indeed" for i in range(6)]


def row_of(store, name, tab="t"):
    return store.show(name, tab)["row"]


def save_next(store, name, old="bad", new="good"):
    shown = store.show(name, "t")
    store.save(name, "t", shown["row"], shown["text"].replace(old, new))
    return shown["row"]


def ask(url, body=None, headers=None, data=None):
    """Status, JSON or text, headers."""
    if body is not None:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        response = opener.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        content = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(content) if is_json else content, response.headers
