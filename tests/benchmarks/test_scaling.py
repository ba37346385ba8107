"""The arithmetic of docs/scaling.md and docs/one-gpu.md."""

from pathlib import Path

import pytest
import torch
from allocations import allocations
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

import tiny
from benchmarks import ppo_step
from benchmarks.scaling import (
    ENGINES,
    GB,
    SHAPE,
    Job,
    Shape,
    frozen_bytes,
    kept,
    layer_gradients,
    layer_values,
    lora_parameters,
    one_gpu,
    one_gpu_peak,
    seconds,
    tables,
    trained_bytes,
)
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel


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
    assert round(one_gpu_peak(sizes) / GB, 1) == 19.8
    assert round(2 * (SHAPE.policy + 2 * SHAPE.backbone) / GB, 1) == 43.5
    assert round(16 * SHAPE.backbone / GB) == 113


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_allocates_what_the_formulas_say(dtype, checkpointing, tmp_path):
    pytest.importorskip("peft")
    sizes = Shape(2000, 256, 768, layers=4, heads=4, kv_heads=4, head_size=64)
    setting = ppo_step.Setting("test", sizes.vocab_size, 8, 64, 64, 64, 256, 4, 4, 768)
    models = ppo_step.given_models(setting, "llama", 0, "ours-lora")
    models["model"].to(dtype)
    reward_model = TokenRewardModel.from_backbone(models.pop("reward_model").to(dtype), copy=False)
    torch.nn.init.normal_(reward_model.token_score.weight)
    trainer = FineGrainedPPOTrainer(
        args=FineGrainedPPOConfig(
            str(tmp_path),
            per_device_train_batch_size=setting.batch,
            num_mini_batches=1,
            num_ppo_epochs=2,
            total_episodes=setting.batch,
            response_length=setting.response,
            gradient_checkpointing=checkpointing,
            bf16=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        processing_class=tiny.word_tokenizer(),
        reward_model=ppo_step.lora_reward_model(reward_model),
        train_dataset=Dataset.from_dict({"input_ids": [[5] * setting.prompt] * setting.batch}),
        **models,
    )
    peaks, step = [], trainer.training_step

    def measured(*args, **kwargs):
        losses = []
        _, peak = allocations(lambda: losses.append(step(*args, **kwargs)))
        peaks.append(peak)
        return losses[0]

    trainer.training_step = measured
    trainer.train()
    tokens = setting.batch * (setting.prompt + setting.response)
    values = layer_values(ppo_step.LORA_RANK, sizes, dtype.itemsize) * tokens
    if checkpointing:
        values += sizes.layers * sizes.hidden_size * dtype.itemsize * tokens
    else:
        values *= sizes.layers
    assert peaks[-1] == pytest.approx(values + layer_gradients(sizes) * tokens, rel=0.1)
