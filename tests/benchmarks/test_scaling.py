"""The arithmetic of docs/scaling.md and docs/one-gpu.md."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from benchmarks.scaling import (
    ENGINES,
    GB,
    SHAPE,
    Job,
    frozen_bytes,
    kept,
    lora_parameters,
    one_gpu,
    seconds,
    tables,
    trained_bytes,
)


pytestmark = pytest.mark.any_trl


DOCS = Path(__file__).parents[2] / "docs"
DOC = "\n\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("scaling.md", "one-gpu.md"))


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


def test_an_adapter_has_as_many_parameters():
    peft = pytest.importorskip("peft")
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=SHAPE.hidden_size,
        intermediate_size=SHAPE.intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained * SHAPE.layers == lora_parameters(16) * 2


def test_what_one_gpu_holds():
    sizes = one_gpu("bfloat16", job=Job(pass_tokens=4096, decoded=16))
    assert sizes["base"] == 2 * SHAPE.policy
    passing = sizes["checkpoints"] + sizes["one layer"] + sizes["logits"]
    peak = sizes["base"] + sizes["adapters"] + max(sizes["cache"], passing)
    assert round(peak / GB, 1) == 20.5
    assert round(2 * (SHAPE.policy + 2 * SHAPE.backbone) / GB, 1) == 43.5
    assert round(16 * SHAPE.backbone / GB) == 113
