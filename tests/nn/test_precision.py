"""Weights that are trained in less than float32."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

import ppo_runs
import tiny
from trl_tokenreward.nn.precision import warn_of_narrow_weights


pytestmark = pytest.mark.any_trl


def warnings(caplog, models, distributed_type=DistributedType.NO, mixed_precision="bf16"):
    caplog.clear()
    accelerator = SimpleNamespace(distributed_type=distributed_type, mixed_precision=mixed_precision)
    warn_of_narrow_weights(models, accelerator)
    return [record.getMessage() for record in caplog.records]


def test_a_model_is_named_by_its_argument_once(caplog):
    wide, narrow = tiny.causal_lm(), tiny.causal_lm().to(torch.bfloat16)
    [message] = warnings(caplog, {"model": wide, "value_model": narrow})
    assert message.startswith("Weights of `value_model` are trained in bfloat16 (model.embed_tokens.weight), in which")
    assert not warnings(caplog, {"model": narrow.requires_grad_(False)})


def test_where_the_optimizer_gets_weights_of_its_own(caplog):
    narrow = {"model": tiny.causal_lm().to(torch.bfloat16)}
    assert not warnings(caplog, narrow, DistributedType.DEEPSPEED)
    assert not warnings(caplog, narrow, DistributedType.FSDP)
    assert warnings(caplog, narrow, DistributedType.FSDP, mixed_precision="no")
    assert warnings(caplog, narrow, DistributedType.MULTI_GPU)


def test_adapters(caplog):
    pytest.importorskip("peft")
    low = tiny.causal_lm().to(torch.bfloat16)
    adapted = ppo_runs.lora(low, modules_to_save=["lm_head"])
    assert "lm_head" in warnings(caplog, {"model": adapted})[0]
    low.is_quantized = True
    assert not warnings(caplog, {"model": adapted})
    assert not warnings(caplog, {"model": ppo_runs.lora(tiny.causal_lm().to(torch.bfloat16))})
