"""Fixtures of the tests of reward_model."""

from dataclasses import fields

import pytest
from datasets import Dataset

import tiny
from model_cases import FAMILIES
from reward_trainer_cases import ROWS
from tiny import causal_lm
from tiny import tokenizer as make_tokenizer
from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Folders of a causal language model of each family."""
    folders = {}
    for name in FAMILIES:
        folders[name] = str(tmp_path_factory.mktemp(name))
        tiny.causal_lm(name).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("bpe")


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    """A trainer of a tiny model on `ROWS`; keyword arguments that the trainer does not know are the configuration's."""

    def make(model=None, trainer_class=TokenRewardTrainer, config_class=TokenRewardConfig, **kwargs):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        }
        trainer = {"train_dataset": Dataset.from_list(ROWS), "processing_class": tokenizer}
        names = {field.name for field in fields(config_class)}
        settings.update({key: value for key, value in kwargs.items() if key in names})
        trainer.update({key: value for key, value in kwargs.items() if key not in names})
        return trainer_class(causal_lm() if model is None else model, config_class(**settings), **trainer)

    return make
