"""The benchmarks: the floor by hand, lengths as asked for, and one tiny run from end to end."""

import numpy as np
import pytest
import torch

from benchmarks import ppo_step
from trl_tokenreward._trl import TRL_HAS_PPO


pytestmark = pytest.mark.slow


def test_the_floor_is_what_one_counts_by_hand():
    # Two rows. The first has n = 2 + 3 - 1 = 4 tokens to read, the second 1 + 1 - 1 = 1. With 10 weights in the
    # backbone and an attention width of 5, F(n) = 20 n + 10 n (n + 1): F(1) = 40, F(2) = 100, F(4) = 280, F(5) = 400.
    # With 7 weights in the head, H(T) = 14 T: H(3) = 42, H(1) = 14. Two epochs.
    first = 2 * (280 + 42) + 280 + 400 + 3 * 2 * (2 * 280 + 42)
    second = 2 * (40 + 14) + 40 + 100 + 3 * 2 * (2 * 40 + 14)
    assert (first, second) == (4936, 812)
    # Three decoding steps read 17 weights of 4 bytes.
    seconds = ppo_step.floor_seconds(
        [2, 1],
        [3, 1],
        backbone_weights=10,
        head_weights=7,
        attention_width=5,
        num_ppo_epochs=2,
        flops_per_second=100.0,
        bytes_per_second=50.0,
    )
    assert seconds == pytest.approx((4936 + 812) / 100 + 3 * 17 * 4 / 50)


@pytest.mark.parametrize(("family", "matrices_of_a_layer"), [("llama", 4 * 64 + 3 * 80), ("gpt_neox", 4 * 64 + 2 * 80)])
def test_the_weights_counted_are_those_of_the_matrices(family, matrices_of_a_layer):
    setting = ppo_step.Setting("tiny", 50, 2, 4, 4, 4, hidden=8, layers=3, heads=2, intermediate=10)
    assert ppo_step.matrix_weights(setting, family) == (3 * matrices_of_a_layer, 8 * 50)


@pytest.mark.parametrize("setting", ppo_step.SETTINGS, ids=lambda setting: setting.name)
def test_completions_are_as_long_as_the_setting_says(setting):
    for update in range(3):
        lengths = ppo_step.completion_lengths(setting, seed=0, update=update)
        assert lengths.max() == setting.response
        assert lengths.sum() == setting.batch * setting.mean_length
        completions = ppo_step.make_completions(setting, seed=0, update=update)
        np.testing.assert_array_equal((completions != ppo_step.PAD).sum(1), lengths)
        ends = completions[torch.arange(setting.batch), torch.from_numpy(lengths) - 1] == ppo_step.EOS
        assert ends.all() == (setting.mean_length < setting.response)
        assert (completions == ppo_step.EOS).sum() == ends.sum()


def test_runs_that_differ_in_their_work_are_not_compared():
    setting = ppo_step.SETTINGS[0]
    options = ppo_step.parse_arguments([])
    same = {"tokens": "a", "optimizer_steps": 8}
    for quantity, other in (("tokens", "b"), ("optimizer_steps", 32)):
        results = {(setting.name, "trl"): [same], (setting.name, "ours"): [{**same, quantity: other}]}
        with pytest.raises(SystemExit, match=f"differ in {quantity}"):
            ppo_step.check_same_work([setting], options, results)
    results = {(setting.name, arm): [same, same] for arm in ppo_step.ARMS}
    ppo_step.check_same_work([setting], options, results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--settings", "1k-full", "--mean-length", "129"], "--mean-length must be between"),
        (["--settings", "1k-padded", "--mean-length", "4"], "--mean-length must be between"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        ppo_step.main(arguments)
    assert message in f"{error.value}{capsys.readouterr().err}"


TINY = ["--settings", "1k-padded", "--repeats", "1", "--updates", "1", "--vocabulary", "40", "--batch", "4"]
TINY += ["--prompt", "5", "--response", "9", "--mean-length", "5", "--hidden", "16", "--layers", "2", "--heads", "2"]


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer to compare with")
def test_both_trainers_do_the_same_work(tmp_path, monkeypatch):
    results = {}
    run = ppo_step.run_in_process
    jobs = []

    def remember(job):
        jobs.append((job["arm"], job["memory"]))
        result = run(job)
        return result if job["memory"] else results.setdefault(job["arm"], result)

    monkeypatch.setattr(ppo_step, "run_in_process", remember)
    monkeypatch.setattr(ppo_step, "machine_throughput", lambda *_: (1e9, 1e9))
    output = tmp_path / "ppo_step.md"
    ppo_step.main([*TINY, "--output", str(output)])

    assert jobs == [("trl", False), ("trl", True), ("ours", False), ("ours", True)]
    assert results["trl"]["tokens"] == results["ours"]["tokens"]
    for result in results.values():
        assert result["optimizer_steps"] == 2 * ppo_step.NUM_PPO_EPOCHS  # the warm-up and one update
        (phases,) = result["phases"]
        assert phases["total"] == pytest.approx(sum(phases[name] for name in ppo_step.PHASES))
        assert all(phases[name] > 0 for name in ppo_step.PHASES)
        assert result["memory"] > 0
    text = output.read_text()
    for title in ("One update", "Targets", "Phases", "Settings"):
        assert f"## {title}" in text


@pytest.mark.skipif(TRL_HAS_PPO, reason="this version of TRL has a PPOTrainer")
def test_without_trls_trainer_ours_can_be_measured_alone(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="has no PPOTrainer to compare with"):
        ppo_step.main(TINY)
    monkeypatch.setattr(ppo_step, "machine_throughput", lambda *_: (1e9, 1e9))
    output = tmp_path / "ppo_step.md"
    ppo_step.main([*TINY, "--arms", "ours", "--output", str(output)])
    assert "## Phases" in output.read_text()
