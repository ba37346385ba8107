"""What has to be right before anything is sharded. That sharded models train as whole ones:
tests/ppo/test_distributed.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.utils.quantization_config import QuantizationMethod

import tiny
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.nn.sharding import check_sharding, layer_classes, shard_frozen
from trl_tokenreward.ppo.forward import PolicyAndValue


def fsdp(**plugin):
    plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "mixed_precision_policy": None, **plugin}
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin))
    return SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)


def deepspeed(stage):
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state)


@pytest.mark.parametrize(
    ("accelerator", "gather", "message"),
    [
        (fsdp(fsdp_version=1), True, "FSDP version 1 .*set `fsdp_version: 2`"),
        (fsdp(cpu_ram_efficient_loading=True), True, "`fsdp_cpu_ram_efficient_loading`.*set it to false"),
        (deepspeed(3), False, "`ds3_gather_for_generation=False`.*Leave it at True"),
    ],
)
def test_settings_that_rollouts_cannot_have(accelerator, gather, message):
    with pytest.raises(ValueError, match=message):
        check_sharding(accelerator, gather)


@pytest.mark.parametrize(
    ("accelerator", "gather"), [(fsdp(), False), (deepspeed(3), True), (deepspeed(2), False)], ids=str
)
def test_settings_that_they_can_have(accelerator, gather):
    check_sharding(accelerator, gather)


def test_fsdp_rounds_weights_alone():
    low = torch.bfloat16
    accelerator = fsdp(mixed_precision_policy=MixedPrecisionPolicy(low, reduce_dtype=low, output_dtype=low))
    check_sharding(accelerator, True)
    policy = accelerator.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (low, torch.float32, None)


def test_layers_of_both_models_are_found():
    value_model = TokenRewardModel.from_backbone(tiny.sequence_classifier("llama"))
    assert layer_classes(tiny.causal_lm("gpt2"), value_model) == ["GPT2Block", "LlamaDecoderLayer"]
    assert PolicyAndValue(tiny.causal_lm("llama"), value_model)._no_split_modules == ["LlamaDecoderLayer"]


@pytest.mark.parametrize(("quantized", "engine"), [(False, False), (False, True), (True, False), (True, True)])
def test_frozen_models_get_the_precision_of_deepspeeds_unless_they_are_quantized(quantized, engine):
    accelerator = deepspeed(2) if engine else SimpleNamespace(distributed_type=DistributedType.NO)
    accelerator.device, accelerator.mixed_precision = torch.device("cpu"), "bf16"
    model = tiny.causal_lm()
    if quantized:  # as the loader marks a model in 4 bits, which transformers refuses to cast
        model.is_quantized, model.quantization_method = True, QuantizationMethod.BITS_AND_BYTES
    shard_frozen(model, accelerator)
    assert model.dtype == (torch.bfloat16 if engine and not quantized else torch.float32)
