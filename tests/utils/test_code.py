"""The hash of the package's code, which caches of prepared rows go by."""

from pathlib import Path

from datasets import load_dataset

import tiny
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.ppo.prompts import prepare_prompts
from trl_tokenreward.utils.code import code_hash


def test_rows_that_other_code_prepared_are_not_taken_from_the_cache(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n')

    def fingerprints():
        rows = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
        return prepare_dataset(rows, tiny.tokenizer())[0]._fingerprint, prepare_prompts(
            rows, tiny.tokenizer(), "train"
        )._fingerprint

    before = fingerprints()
    assert fingerprints() == before
    code_hash.cache_clear()
    with monkeypatch.context() as other_code:
        other_code.setattr(Path, "read_bytes", lambda path: b"other")
        after = fingerprints()
    code_hash.cache_clear()
    assert after[0] != before[0] and after[1] != before[1]
    assert fingerprints() == before
