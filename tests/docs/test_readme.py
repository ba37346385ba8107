"""The README's Python runs as it stands there, with a tiny model and few steps in place of the names and numbers."""

import re
from pathlib import Path

import datasets
import pytest

import tiny
from demo_corpus import make_corpus


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]


ROOT = Path(__file__).resolve().parents[2]
SMALL = 'use_cpu=True, bf16=False, report_to="none"'


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    tiny.causal_lm(max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(make_corpus(16, seed=0)))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    replacements = {
        "Qwen/Qwen2.5-0.5B-Instruct": str(tmp_path / "model"),
        "max_edit_ratio=0.5": f"max_edit_ratio=0.9, max_steps=2, {SMALL}",
        "total_episodes=1000": f"total_episodes=8, {SMALL}",
    }
    names: dict = {}
    for block in blocks:
        for old, new in replacements.items():
            block = block.replace(old, new)
        exec(block, names)
    assert any(names["alignment"].original_mask) and any(names["alignment"].edited_mask)
    assert len(names["scores"].tokens) == len(names["scores"].token_scores)
    assert names["trainer"].state.global_step == 4
    assert len(names["result"].comparisons) == 2 and (tmp_path / "win-rate" / "answers.jsonl").exists()


def test_the_readme_shows_the_commands_that_there_are():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"^python (\S+\.py)", readme, re.MULTILINE):
        assert (ROOT / script).exists(), script
