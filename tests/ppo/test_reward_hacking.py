"""Signs of reward hacking: what is one, what is not, and what the trainer's callback does about them."""

import logging

import pytest
from transformers import TrainerControl, TrainerState

from trl_tokenreward import RewardHackingCallback
from trl_tokenreward.ppo.reward_hacking import hacking_signs


pytestmark = pytest.mark.any_trl

START = {
    "objective/raw_scores": 1.0,
    "completions/mean_length": 12.0,
    "completions/repetition": 0.05,
    "objective/kl": 0.0,
}


def history(*changes, start=START):
    """Logs of a run: the start, then three with each of the changes in turn."""
    return [start, *({**start, "objective/raw_scores": 2.0, **change} for change in changes for _ in range(3))]


@pytest.mark.parametrize(
    ("change", "signs"),
    [
        ({}, set()),
        ({"completions/mean_length": 17.0}, set()),
        ({"completions/mean_length": 19.0}, {"length"}),
        ({"completions/mean_length": 7.9}, {"length"}),
        ({"completions/repetition": 0.24}, set()),
        ({"completions/repetition": 0.26}, {"repetition"}),
        ({"objective/kl": 11.9}, set()),
        ({"objective/kl": 12.1}, {"kl"}),
        ({"completions/mean_length": 32.0, "completions/repetition": 0.6, "objective/kl": 55.0}, {"length", "repetition", "kl"}),
        # What gets no better is not hacked.
        ({"completions/mean_length": 32.0, "objective/raw_scores": 1.0}, set()),
        ({"completions/mean_length": 32.0, "objective/raw_scores": float("nan")}, set()),
    ],
)  # fmt: skip
def test_signs(change, signs):
    assert set(hacking_signs(history(change))) == signs


@pytest.mark.parametrize(
    ("change", "signs"),
    [
        ({}, set()),
        ({"completions/mean_length": 19.0}, {"length"}),
        ({"completions/repetition": 0.26}, {"repetition"}),
        ({"kl": 0.9}, set()),  # of a token, where PPO's is of a completion
        ({"kl": 1.1}, {"kl"}),
    ],
)
def test_signs_in_logs_of_grpo(change, signs):
    start = {"reward": 1.0, "completions/mean_length": 12.0, "completions/repetition": 0.05, "kl": 0.0}
    logs = [start, *[{**start, "reward": 2.0, **change}] * 3]
    assert set(hacking_signs(logs)) == signs
    for missing in ("completions/repetition", "kl"):  # which TRL's own rewards and `beta=0` do not log
        fewer = [{name: value for name, value in entry.items() if name != missing} for entry in logs]
        assert set(hacking_signs(fewer)) == signs - {missing.split("/")[-1]}


def test_the_last_logs_count_and_others_do_not():
    evaluation = {"eval_objective/scores": 3.0}
    logs = history({"completions/mean_length": 30.0}, {})
    assert hacking_signs([evaluation, *logs, evaluation]) == {}
    assert set(hacking_signs([*logs[:4], evaluation])) == {"length"}
    assert hacking_signs(logs[:3]) == {}  # too few to tell
    assert set(hacking_signs(logs[:3], window=2)) == {"length"}
    assert hacking_signs(logs[:4], max_length_factor=3) == {}


def test_what_is_said():
    signs = hacking_signs(
        history({"completions/mean_length": 30.0, "completions/repetition": 0.5, "objective/kl": 60.0})
    )
    assert signs == {
        "length": "the reward has risen from 1 to 2 while the mean length went from 12.0 to 30.0 tokens",
        "repetition": "the reward has risen from 1 to 2 while repeated trigrams went from 5% to 50%",
        "kl": "the reward has risen from 1 to 2 while the KL to the reference came to 2.00 nats a token",
    }


def go_through(callback, logs):
    state, control = TrainerState(), TrainerControl()
    callback.on_train_begin(None, state, control)
    for state.global_step, entry in enumerate(logs):
        state.log_history.append(entry)
        callback.on_log(None, state, control)
        if control.should_training_stop:
            return state.global_step
    return None


@pytest.fixture
def warnings(caplog, monkeypatch):
    from accelerate import PartialState

    PartialState()  # accelerate's loggers ask it which process they are on
    with caplog.at_level(logging.WARNING, logger="trl_tokenreward.ppo.reward_hacking"):
        yield caplog


def test_each_sign_is_warned_of_once(warnings):
    callback = RewardHackingCallback()
    long = {"completions/mean_length": 30.0}
    assert go_through(callback, history(long, {**long, "objective/kl": 40.0})) is None
    first, second = (record.getMessage() for record in warnings.records)
    assert "At step 3 the reward has risen" in first and "try `center_rewards`" in first
    assert "nats a token" in second and "`kl_target`" in second
    assert set(callback.signs) == {"length", "kl"}
    go_through(callback, [START])
    assert callback.signs == {}


def test_it_can_stop_the_run(warnings):
    assert go_through(RewardHackingCallback(stop=True), history({}, {"completions/mean_length": 40.0}, {})) == 4


def test_a_reward_without_an_opinion():
    """GRPO logs `None` where no reward function had one."""
    runs = {"reward": 1.0, "completions/mean_length": 12.0}
    silent, risen = {**runs, "reward": None}, {**runs, "reward": 2.0, "completions/mean_length": 30.0}
    assert hacking_signs([silent, runs, risen, silent, risen, risen]).keys() == {"length"}
    assert hacking_signs([silent] * 5) == {}


def test_unknown_thresholds_are_errors():
    with pytest.raises(TypeError, match="max_lenght_factor"):
        RewardHackingCallback(max_lenght_factor=2)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"window": 0}, "`window` must be at least 1"),
        ({"max_length_factor": 0.5}, "`max_length_factor` must be above 1"),
        ({"max_repetition": -1.0}, "`max_repetition` must be at least 0"),
        ({"max_kl_per_token": -1.0}, "`max_kl_per_token` must be at least 0"),
    ],
)
def test_thresholds_out_of_range(thresholds, message):
    with pytest.raises(ValueError, match=message):
        RewardHackingCallback(**thresholds)
