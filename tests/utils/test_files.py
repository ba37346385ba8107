"""Files that are whole or not there, and folders that are one process's."""

import os

import pytest
from datasets import Dataset

from trl_tokenreward.utils.files import check_own_folder, lock_folder, new_path, write_text
from trl_tokenreward.utils.loading import save_dataset


pytestmark = pytest.mark.any_trl


def fail(*_, **__):
    raise OSError("disk full")


def test_a_text_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "card.md"
    write_text(path, "old")
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="disk full"):
                write_text(path, "new")
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["card.md"]
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["card.md"]
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("name", "method"), [("a.jsonl", "to_json"), ("a.parquet", "to_parquet"), ("a", "save_to_disk")]
)
def test_a_data_set_is_whole_or_not_there(tmp_path, monkeypatch, name, method):
    def half(self, path, **kwargs):
        with open(path, "w") as file:
            file.write("half")
        fail()

    dataset = Dataset.from_dict({"a": [1]})
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, method, half)
        with pytest.raises(OSError, match="disk full"):
            save_dataset(dataset, tmp_path / name)
    assert os.listdir(tmp_path) == []
    (tmp_path / f".new-{name}").mkdir()  # what a kill leaves
    save_dataset(dataset, tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_a_folder_is_one_processes(tmp_path):
    lock = lock_folder(tmp_path / "out")
    with pytest.raises(ValueError, match="has .*out open: wait until it ends"):
        lock_folder(tmp_path / "out")
    lock.release()
    lock_folder(tmp_path / "out").release()
    check_own_folder(tmp_path / "none", "log")
    (tmp_path / "out" / "log.new").touch()
    check_own_folder(tmp_path / "out", "log")  # with a lock alone, and what a kill leaves of the first `write_text`
    (tmp_path / "out" / "other").touch()
    with pytest.raises(ValueError, match="a folder with other things in it"):
        check_own_folder(tmp_path / "out", "log")
    (tmp_path / "out" / "log").touch()
    check_own_folder(tmp_path / "out", "log")


def test_a_new_folder_has_its_name_when_it_is_whole(tmp_path):
    with new_path(tmp_path / "folder") as new:
        new.mkdir()
        (new / "file").touch()
        assert not (tmp_path / "folder").exists()
    assert os.listdir(tmp_path) == ["folder"]
