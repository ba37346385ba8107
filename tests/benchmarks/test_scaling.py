"""The arithmetic of docs/scaling.md."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from benchmarks.scaling import ENGINES, SHAPE, frozen_bytes, kept, seconds, tables, trained_bytes


pytestmark = pytest.mark.any_trl


DOC = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", tables())
def test_the_page_has_the_tables_that_the_script_prints(name):
    assert tables()[name] in DOC


def test_the_models_have_as_many_parameters():
    config = Qwen2Config(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.hidden_size,
        intermediate_size=SHAPE.intermediate_size,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        num_labels=1,
    )
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config)
        reward = AutoModelForSequenceClassification.from_config(config)
    assert policy.num_parameters() == SHAPE.policy
    assert reward.model.num_parameters() == SHAPE.backbone


def test_what_is_kept_by_hand():
    trained = frozen = 7_615_616_512 + 7_070_619_136
    assert SHAPE.policy + SHAPE.backbone == trained
    assert kept("FSDP2", 8, "full") == trained * 2 + frozen / 4
    assert kept("ZeRO-2", 8, "full") == trained * 3.75 + frozen * 2
    for engine in ENGINES[1:]:  # one GPU has it all, whatever the engine
        assert (trained_bytes(engine, 1), frozen_bytes(engine, 1)) == (16, 2)


def test_the_claims_of_the_text():
    full = sum(seconds(64, "full", 0.3).values())
    one_epoch = full - seconds(64, "full", 0.3)["train"] * 3 / 4
    assert round(full) == 98 and round(one_epoch) == 40
    assert seconds(64, "full", 0.3)["train"] / full == pytest.approx(0.8, abs=0.01)
