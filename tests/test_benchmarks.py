"""The benchmark of one PPO update: its floor by hand, and that it compares what it says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ppo_step import SETTINGS, Setting, floor_seconds, update_flops
from trl_tokenreward._trl import TRL_HAS_PPO


ROOT = Path(__file__).parents[1]


def test_the_floor_by_hand():
    setting = Setting(vocab=10, batch=2, prompt=1, response=2, padded=True, hidden=3, layers=2, heads=1)
    lengths = np.array([2, 1])  # rows of 3 and of 2 tokens
    # Two layers of 5 weights: each used once by each of 5 tokens; attention over 1 + 2 + 3 and 1 + 2 tokens, two products of
    # 3; a product and a sum each.
    backbone = 2 * 2 * (5 * 5 + (6 + 3) * 2 * 3)
    head = 2 * 3 * 10 * 3  # three completion tokens
    passes_of_policy, passes_of_values, passes_of_reward = 2 + 4 * 3, 1 + 4 * 3, 1
    expected = backbone * (passes_of_policy + passes_of_values + passes_of_reward) + head * passes_of_policy
    assert update_flops(setting, lengths, layer_weights=5) == expected
    # Two steps of decoding read 2 * 5 + 3 * 10 weights of 4 bytes.
    assert floor_seconds(setting, lengths, 5, 4, flops=100, bandwidth=10) == expected / 100 + 2 * 40 * 4 / 10


@pytest.mark.parametrize("name", SETTINGS)
def test_padded_settings_have_the_mean_length_that_they_say(name):
    setting = SETTINGS[name]
    lengths = setting.lengths(seed=0)
    assert len(lengths) == setting.batch and lengths.max() == setting.response and lengths.min() >= 1
    assert lengths.mean() == (setting.response / 4 if setting.padded else setting.response)
    assert not setting.padded or len(set(lengths.tolist())) > 2


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer to compare with")
def test_both_trainers_run_and_train_on_the_same_tokens(tmp_path):
    output = tmp_path / "table.md"
    command = [sys.executable, str(ROOT / "benchmarks" / "ppo_step.py"), "--settings", "tiny"]
    options = ["--repeats", "1", "--updates", "1", "--output", str(output)]
    done = subprocess.run(
        [*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = output.read_text()
    assert table.count("1k / 8 / 8 / 16, padded") == 4
    assert "TRL 1.12" in table and " --settings tiny" in table
