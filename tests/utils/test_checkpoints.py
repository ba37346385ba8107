"""Files of checkpoints that are missing, cut short or changed are found and named, and training goes on from whole
ones."""

import errno
import json
import os
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

import tiny
from ppo_scenario import Scenario
from reward_trainer_cases import ROWS
from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer
from trl_tokenreward.utils import checkpoints
from trl_tokenreward.utils.checkpoints import find_damage


@pytest.fixture
def checkpoint(tmp_path):
    """Two shards of weights with their index, in a folder of their own, and two files beside it."""
    (tmp_path / "model").mkdir()
    shards = ("one.safetensors", "two.safetensors")
    for name in shards:
        save_file({name: torch.arange(100.0)}, tmp_path / "model" / name)
    index = {"weight_map": {name: name for name in shards}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"step": torch.arange(100.0)}, tmp_path / "optimizer.pt")
    (tmp_path / "state.json").write_text('{"step": 8}')
    return tmp_path


def test_a_whole_one(checkpoint):
    assert find_damage(checkpoint, ["state.json", "optimizer*"]) is None


def test_a_file_that_every_checkpoint_has(checkpoint):
    assert find_damage(checkpoint, ["state.json", "scheduler.pt"]) == "it has no scheduler.pt"


def test_a_shard(checkpoint):
    (checkpoint / "model" / "two.safetensors").unlink()
    assert find_damage(checkpoint) == "it has no model/two.safetensors"


@pytest.mark.parametrize("name", ["optimizer.pt", "state.json", "model/one.safetensors"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.99])
def test_a_file_that_was_cut_short(checkpoint, name, kept):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: int(kept * len(content))])
    assert find_damage(checkpoint).startswith(f"{name} is damaged (")


def test_a_byte_that_changed(checkpoint):
    content = bytearray((checkpoint / "optimizer.pt").read_bytes())
    place = content.index(torch.arange(100.0).numpy().tobytes())
    content[place + 17] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(content)
    assert torch.load(checkpoint / "optimizer.pt")["step"][4] != 4.0  # without a word
    assert find_damage(checkpoint).startswith("optimizer.pt is damaged (wrong checksum of ")


def make_ppo(folder, **settings):
    return Scenario(folder).make(**settings)


def make_reward(folder, **settings):
    args = TokenRewardConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=2,
        **settings,
    )
    return TokenRewardTrainer(
        tiny.causal_lm(), args, train_dataset=Dataset.from_list(ROWS), processing_class=tiny.tokenizer()
    )


SETTINGS = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
WRITTEN = {"ppo": ["value_model/model.safetensors", "adapted.json"], "reward": []}
WRITTEN = {
    name: [*own, "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]
    for name, own in WRITTEN.items()
}
FILES = [(kind, name) for kind, names in WRITTEN.items() for name in names]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of runs with three checkpoints."""
    folders = {}
    for kind, make in (("ppo", make_ppo), ("reward", make_reward)):
        folders[kind] = tmp_path_factory.mktemp(kind)
        make(folders[kind], **SETTINGS).train()
        shutil.rmtree(folders[kind] / "checkpoint-1")
    return folders


@pytest.fixture
def resume(finished, tmp_path, monkeypatch):
    """Resume a copy of a run after something was done to its checkpoints. Gives the steps that it began and ended at,
    and the warnings."""

    def run(kind, change, resume_from_checkpoint):
        folder = tmp_path / kind
        shutil.copytree(finished[kind], folder)
        change(folder)
        warnings, begun = [], []
        monkeypatch.setattr(checkpoints.logger, "warning", warnings.append)
        trainer = {"ppo": make_ppo, "reward": make_reward}[kind](folder, **{**SETTINGS, "max_steps": 4})
        load = trainer._load_optimizer_and_scheduler
        trainer._load_optimizer_and_scheduler = lambda path: begun.append(path and os.path.basename(path)) or load(path)
        if resume_from_checkpoint is not True:
            resume_from_checkpoint = str(folder / resume_from_checkpoint)
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        assert trainer.state.global_step == 4
        return begun, warnings

    return run


def cut_short(name, *steps):
    def change(folder):
        for step in steps:
            path = folder / f"checkpoint-{step}" / name
            path.write_bytes(path.read_bytes()[:-7])

    return change


def removed(name, *steps):
    return lambda folder: [(folder / f"checkpoint-{step}" / name).unlink() for step in steps]


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_the_last_of_whole_ones_is_resumed(resume, kind):
    assert resume(kind, lambda folder: None, True) == (["checkpoint-3"], [])


def test_a_folder_that_is_not_there_is_named(resume):
    with pytest.raises(
        ValueError, match=r"There is no folder .*checkpoint-7 to resume from. Give that of a checkpoint"
    ):
        resume("reward", lambda folder: None, "checkpoint-7")


@pytest.mark.parametrize(("given", "meant"), [("True", True), ("true", True), ("False", False), (False, False)])
def test_texts_of_a_command_line(finished, given, meant):
    trainer = make_reward(finished["reward"], **SETTINGS)
    last = str(finished["reward"] / "checkpoint-3")
    assert checkpoints.checkpoint_to_resume(trainer, given) == (last if meant else False)


@pytest.mark.parametrize(("kind", "name"), [("ppo", "value_model/model.safetensors"), ("reward", "trainer_state.json")])
def test_the_one_before_a_checkpoint_that_was_cut_short_is_resumed(resume, kind, name):
    begun, [warning] = resume(kind, cut_short(name, 3), True)
    assert begun == ["checkpoint-2"]
    assert "checkpoint-2, the last whole checkpoint: checkpoint-3 cannot be resumed" in warning
    assert f"{name} is damaged" in warning


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_checkpoint_that_was_cut_short_is_refused(resume, kind, name):
    with pytest.raises(ValueError, match=f"checkpoint-3 cannot be resumed: {name} is damaged .* an earlier one"):
        resume(kind, cut_short(name, 3), "checkpoint-3")


@pytest.mark.parametrize(("kind", "name"), [case for case in FILES if not case[1].endswith("model.safetensors")])
def test_a_checkpoint_without_one_of_its_files_is_refused(resume, kind, name):
    with pytest.raises(ValueError, match=rf"checkpoint-3 cannot be resumed: it has no {name.split('.')[0]}"):
        resume(kind, removed(name, 3), "checkpoint-3")


@pytest.mark.parametrize(("kind", "name"), [case for case in FILES if case[1].endswith("model.safetensors")])
def test_a_checkpoint_without_weights_is_refused(resume, kind, name):
    with pytest.raises((ValueError, OSError), match=f"checkpoint-3{'/value_model' if '/' in name else ''}"):
        resume(kind, removed(name, 3), "checkpoint-3")


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_no_whole_checkpoint_is_an_error(resume, kind):
    with pytest.raises(ValueError, match="is whole: checkpoint-3 .*optimizer.pt is damaged .*; checkpoint-2 cannot"):
        resume(kind, cut_short("optimizer.pt", 2, 3), True)


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_no_checkpoint_is_an_error(resume, kind):
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        resume(kind, lambda folder: [shutil.rmtree(path) for path in folder.glob("checkpoint-*")], True)


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_an_optimizer_that_was_not_saved_is_missed(tmp_path, kind):
    make = {"ppo": make_ppo, "reward": make_reward}[kind]
    make(tmp_path, **SETTINGS, save_only_model=True).train()
    with pytest.raises(ValueError, match=r"checkpoint-3 cannot be resumed, it has no optimizer\*"):
        make(tmp_path, **{**SETTINGS, "max_steps": 4}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_writing_over_an_earlier_checkpoint_may_be_cut_short(finished, tmp_path, monkeypatch, kind):
    """A run in the folder of an earlier one: its weights beside the other's optimizer are no checkpoint."""
    folder = tmp_path / kind
    shutil.copytree(finished[kind], folder)
    trainer = {"ppo": make_ppo, "reward": make_reward}[kind](folder, **{**SETTINGS, "save_steps": 3})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert find_damage(folder / "checkpoint-3", ["trainer_state.json"]) == "it has no trainer_state.json"
    assert find_damage(folder / "checkpoint-2", ["trainer_state.json"]) is None
