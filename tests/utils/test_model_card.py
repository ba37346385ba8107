"""The card of a policy. That of a reward model is in the tests of its trainer."""

import re

import pytest

import grpo_runs
import ppo_runs
from tiny import word_tokenizer
from trl_tokenreward.utils.model_card import policy_example


@pytest.mark.parametrize(("make", "run"), [(ppo_runs.make, "terminal"), (grpo_runs.make, "process")])
def test_the_example_of_a_policy_runs(make, run, tmp_path, monkeypatch, capsys):
    trainer = make(run, tmp_path / "out")
    trainer.save_model()
    trainer.create_model_card(model_name="out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "This model is fine-tuned.\n" in card and "None" not in card
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example.replace("max_new_tokens=128", "max_new_tokens=3"))
    assert capsys.readouterr().out


def test_a_chat_model_is_asked_by_messages():
    tokenizer = word_tokenizer()
    assert 'prompt = "What is a token?"' in policy_example("a", tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert 'prompt = [{"role": "user", "content": "What is a token?"}]' in policy_example("a", tokenizer)
