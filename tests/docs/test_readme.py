"""The README is short enough to be read in a minute, and its Python runs as it stands there, with a tiny model and few steps
in place of the names and numbers."""

import re
from pathlib import Path

import datasets
import pytest

import tiny
from demo_corpus import make_corpus


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = 'use_cpu=True, bf16=False, report_to="none"'


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    tiny.causal_lm(max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(make_corpus(16, seed=0)))
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    replacements = {
        "Qwen/Qwen2.5-0.5B-Instruct": str(tmp_path / "model"),
        "num_train_epochs=1": f"max_steps=2, {SMALL}",
        "total_episodes=1000": f"total_episodes=8, logging_steps=4, {SMALL}",
    }
    for old, new in replacements.items():
        assert block.count(old) == 1, old
        block = block.replace(old, new)
    names: dict = {}
    exec(block, names)
    assert names["reward_trainer"].state.global_step == 2
    # The policy was paid by the token scores of the model that the first half of the block trained and saved.
    trained, loaded = names["reward_trainer"].model, names["reward_model"]
    assert loaded.token_head_is_trained and loaded.token_score.weight.equal(trained.token_score.weight)
    assert names["ppo_trainer"].state.global_step == 4
    assert names["ppo_trainer"].state.log_history[0]["objective/raw_scores"] != 0


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert README.index("pip install") < README.index("```python") < README.index("## Features")
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in block.splitlines() if line and not line.startswith(("from", "import"))]) <= 12


def test_the_readme_shows_the_commands_that_there_are():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]  # what a bare machine runs
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"\bexamples/\w+\.py", README):
        assert (ROOT / script).exists(), script
