"""Generation with vLLM, tested against the interface that TRL defines: TRL's own code runs, over a stand-in for vLLM.

As a script: `python test_vllm_engine.py OUTPUT CHECKPOINT` makes the runs of `test_two_processes`.
"""

import copy
import importlib.util
import inspect
import json
import math
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
import torch
import trl
from safetensors.torch import save_file

import fake_vllm
import ppo_runs
import tiny
from processes import launch
from trl_tokenreward import FineGrainedPPOConfig
from trl_tokenreward.ppo import vllm as vllm_engine


pytest.importorskip("requests", reason="TRL talks to vLLM by requests (extra: dev)")


class Collector(ppo_runs.RecordingCollector):
    """Has the stand-in sample with the random numbers that the trainer draws for transformers, so that the runs
    compare; and keeps the weights that it should sample with."""

    fake, server = None, None

    def generate(self, prompts, uniform, temperature):
        if self.vllm_engine is not None:
            # A server has the prompts of all processes. Greedy decoding needs no numbers.
            gathered = self.accelerator.gather(uniform.contiguous()) if self.server and temperature > 0 else uniform
            self.fake.uniforms = gathered if temperature > 0 else None
            self.expected_weights = [*getattr(self, "expected_weights", []), self.weights()]
        return super().generate(prompts, uniform, temperature)

    def weights(self):
        policy = copy.deepcopy(self.inference.models.policy)
        if hasattr(policy, "merge_and_unload"):
            policy = policy.merge_and_unload()
        return {name: parameter.detach() for name, parameter in policy.named_parameters()}


class Trainer(ppo_runs.RecordingTrainer):
    """Its collector samples from the stand-in."""

    _collector_class = Collector
    server = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        engine = self.collector.vllm_engine
        if engine is not None:
            self.fake = self.collector.fake = self.server or engine.generation.llm
            self.collector.server = self.server

    @property
    def expected_weights(self):
        return self.collector.expected_weights


def save_checkpoint(directory, family="llama"):
    """What vLLM finds at the policy's path: a model of its form with other weights, which none of the samples may come
    from."""
    path = str(Path(directory) / f"checkpoint-{family}")
    tiny.causal_lm(family, seed=9, vocab_size=ppo_runs.VOCAB_SIZE).save_pretrained(path)
    return path


def make(
    run, directory, mode=None, checkpoint=None, change_policy=lambda policy: policy, own_reference=False, **overrides
):
    """A trainer of one of `ppo_runs`: with transformers, with vLLM, or with a server's vLLM. With `own_reference`, it
    gets the policy as it is before the change as its reference."""
    settings = {"use_vllm": mode is not None}
    if mode == "server":
        settings |= {"vllm_mode": "server", "vllm_server_base_url": Trainer.server.url}

    def models(family):
        made = ppo_runs.RUNS[run]["models"](family)
        made["model"].name_or_path = checkpoint or save_checkpoint(directory, family)
        reference = {"ref_model": copy.deepcopy(made["model"])} if own_reference else {}
        return {**made, **reference, "model": change_policy(made["model"])}

    with mock.patch.object(ppo_runs, "RecordingTrainer", Trainer):
        return ppo_runs.make(run, directory, **{"models": models, **settings, **overrides})


@contextmanager
def vllm(mode, directory, family="llama", checkpoint=None):
    if mode == "server":
        with fake_vllm.server(checkpoint or save_checkpoint(directory, family)) as fake:
            with mock.patch.object(Trainer, "server", fake):
                yield
    else:
        with fake_vllm.colocate():
            yield


def assert_close(actual, expected):
    (actual, actual_logs), (expected, expected_logs) = actual, expected
    assert set(actual) <= set(expected)
    for name, tensor in actual.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    actual_logs, expected_logs = (
        [{name: value for name, value in entry.items() if not name.startswith("sampling/")} for entry in logs]
        for logs in (actual_logs, expected_logs)
    )
    ppo_runs.assert_same_logs(actual_logs, expected_logs)


def assert_weights(trainer):
    """Each request found vLLM with the policy's weights of that moment, all of them."""
    generated_with = trainer.fake.generated_with
    assert len(generated_with) == len(trainer.expected_weights) > 0
    for weights, expected in zip(generated_with, trainer.expected_weights, strict=True):
        assert set(weights) == set(expected)
        assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


def plain_logps(model, rollout, temperature=1.0):
    """Row by row, without padding or a cache."""
    result = torch.zeros_like(rollout.per_token_logps)
    for i in range(len(result)):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i].bool()]
        completion = rollout.completion_ids[i][rollout.completion_mask[i].bool()]
        with torch.no_grad():
            logits = model(torch.cat([prompt, completion]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1)
        result[i, : len(completion)] = logps.gather(1, completion.unsqueeze(1)).squeeze(1)
    return result


# --- TRL's interface --------------------------------------------------------------------------------------------------


def test_names_defaults_and_types_are_trls():
    def of(config_class):
        # The types as they are written: transformers' parser takes the `None` out of the fields' own.
        written = {
            name: t for base in reversed(config_class.__mro__) for name, t in inspect.get_annotations(base).items()
        }
        return {f.name: (f.default, written[f.name]) for f in fields(config_class) if "vllm" in f.name}

    ours, trls = of(FineGrainedPPOConfig), of(trl.RLOOConfig)
    assert ours == {name: trls[name] for name in ours}
    # It would change the distribution that PPO takes for the policy's.
    assert trls.keys() - ours.keys() == {"vllm_structured_outputs_regex"}


def test_trl_knows_every_argument(tmp_path, monkeypatch):
    from trl.generation.vllm_generation import VLLMGeneration

    calls = {}

    class Recorder:
        def __init__(self, **kwargs):
            calls["__init__"] = kwargs

        def generate(self, **kwargs):
            calls["generate"] = kwargs
            return None, [[4] * 8] * len(kwargs["prompts"]), [[[-1.0]] * 8] * len(kwargs["prompts"]), None

        def sync_weights(self, **kwargs):
            calls["sync_weights"] = kwargs

    monkeypatch.setattr(vllm_engine, "load_vllm_generation", lambda: Recorder)
    with mock.patch.object(Trainer, "server", mock.MagicMock(url="http://localhost:8000")):
        make("terminal", tmp_path, "server").evaluate()
    assert set(calls) == {"__init__", "generate", "sync_weights"}
    for name, kwargs in calls.items():
        inspect.signature(getattr(VLLMGeneration, name)).bind(None, **kwargs)


# --- whole runs -------------------------------------------------------------------------------------------------------


RUNS = {
    "terminal": ("terminal", "colocate", {"eval_temperature": 0.0}),
    "tied weights": ("stream", "colocate", {"temperature": 0.7, "eval_temperature": 1.3}),
    "a function, sleep mode": ("function", "colocate", {"vllm_enable_sleep_mode": True}),
    "any stop token": ("function", "colocate", {"stop_token": None, "stop_token_id": 3}),
    "no stop token": ("full length", "colocate", {}),
    "a server": ("terminal", "server", {}),
    "a server, no stop token": ("full length", "server", {"eval_temperature": 0.0}),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_a_run_with_vllm_is_that_with_transformers(name, tmp_path):
    run, mode, settings = RUNS[name]
    plain_settings = {key: value for key, value in settings.items() if not key.startswith("vllm")}
    expected = make(run, tmp_path / "plain", **plain_settings)
    expected.train()
    with vllm(mode, tmp_path, ppo_runs.RUNS[run].get("family", "llama")):
        trainer = make(run, tmp_path / "vllm", mode, **settings)
        trainer.train()
        assert trainer.generate_completions().equals(expected.generate_completions())
    assert_close(ppo_runs.outcome(trainer), ppo_runs.outcome(expected))
    assert_weights(trainer)
    # 4 updates; 3 evaluations, and one listing, of two batches each.
    assert len(trainer.fake.requests) == 12
    temperatures = {params["temperature"] for _, params in trainer.fake.requests}
    assert temperatures == {trainer.args.temperature, trainer._eval_temperature}
    if trainer.stop_token_id != 1:
        eos = torch.cat([rollout.completion_ids.flatten() for rollout in trainer.rollouts.values()]) == 1
        assert eos.any()  # or the stand-in, which would stop there, has not been asked to go on
    if mode == "server":
        # One transfer for each update and each evaluation.
        assert len(trainer.fake.announced) == len(trainer.fake.loads) == 8
        announced = {name: (dtype, shape) for name, dtype, shape in trainer.fake.announced[0]}
        assert announced == {name: ("float32", list(p.shape)) for name, p in trainer.collector.weights().items()}


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.slow
def test_adapters_are_merged_into_what_vllm_gets(mode, tmp_path):
    pytest.importorskip("peft")
    settings = {"modules_to_save": ["lm_head"]}

    def change_policy(policy):
        policy = ppo_runs.lora(policy, **settings)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return policy

    overrides = {"change_policy": change_policy, "max_steps": 8, "save_strategy": "no", "eval_strategy": "no"}
    expected = make("terminal", tmp_path / "plain", own_reference=True, **overrides)
    expected.train()
    with vllm(mode, tmp_path):
        with pytest.raises(ValueError, match="Pass a `ref_model` to have no adapter copied as the reference"):
            make("terminal", tmp_path / "vllm", mode, **overrides)
        trainer = make("terminal", tmp_path / "vllm", mode, own_reference=True, **overrides)
        before = trainer.collector.weights()
        frozen = {
            name: parameter.detach().clone()
            for name, parameter in trainer.policy_model.named_parameters()
            if not parameter.requires_grad
        }
        trainer.train()
    assert_weights(trainer)
    after = dict(trainer.policy_model.named_parameters())
    assert frozen and [name for name, weight in frozen.items() if not torch.equal(weight, after[name])] == []
    assert_close(ppo_runs.outcome(trainer), ppo_runs.outcome(expected))
    moved = {name for name, weight in trainer.expected_weights[1].items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj", "down_proj", "lm_head"}


def low_precision_adapter(policy):
    policy = ppo_runs.lora(policy.to(torch.bfloat16))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return policy


def test_merging_adapters_at_low_precision_leaves_nothing_behind(tmp_path):
    pytest.importorskip("peft")

    with vllm("colocate", tmp_path):
        trainer = make("terminal", tmp_path, "colocate", change_policy=low_precision_adapter)
        policy, engine = trainer.policy_model, trainer.collector.vllm_engine
        before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}

        def changed():
            return {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}

        engine.sync()
        assert changed() == set()
        engine.generation.sync_weights()  # TRL's own
        assert changed()


def test_nor_does_the_transfer_after_vllm_has_slept(tmp_path):
    pytest.importorskip("peft")
    with vllm("colocate", tmp_path):
        settings = {"change_policy": low_precision_adapter, "vllm_enable_sleep_mode": True}
        trainer = make("terminal", tmp_path, "colocate", **settings)
        policy = trainer.policy_model
        before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
        for _ in range(2):  # several batches each
            trainer.evaluate()
    assert [name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.slow
def test_a_resumed_run_samples_from_the_checkpoints_policy(mode, tmp_path):
    with vllm(mode, tmp_path):
        whole = make("terminal", tmp_path / "run", mode)
        whole.train()
        resumed = make("terminal", tmp_path / "resumed", mode)
        first = len(resumed.fake.generated_with) if mode == "server" else 0
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    assert sorted(resumed.rollouts) == [2, 3]
    resumed.fake.generated_with = resumed.fake.generated_with[first:]
    assert_weights(resumed)
    assert_close(ppo_runs.outcome(resumed), ppo_runs.outcome(whole))


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_an_evaluation_is_of_the_policy_as_it_is(mode, tmp_path):
    with vllm(mode, tmp_path):
        trainer = make("terminal", tmp_path, mode, eval_temperature=0.0)
        trainer.evaluate()
        with torch.no_grad():
            for parameter in trainer.policy_model.parameters():
                parameter.mul_(1.5)
        trainer.generate_completions()
    assert_weights(trainer)
    assert not torch.equal(*(trainer.fake.generated_with[i]["lm_head.weight"] for i in (0, -1)))


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.0, 0.125, math.nan])
@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllms_log_probabilities_are_only_reported(mode, error, tmp_path):
    settings = {"max_steps": 1, "num_ppo_epochs": 1, "num_mini_batches": 1, "logging_steps": 1, "temperature": 0.8}
    with vllm(mode, tmp_path):
        trainer = make("terminal", tmp_path, mode, eval_strategy="no", save_strategy="no", **settings)
        policy = copy.deepcopy(trainer.policy_model)
        trainer.fake.error = error
        trainer.train()
    rollout = trainer.rollouts[0]
    torch.testing.assert_close(rollout.per_token_logps, plain_logps(policy, rollout, 0.8), rtol=0, atol=1e-5)
    logs = trainer.state.log_history[0]
    assert logs["val/ratio"] == pytest.approx(1, abs=1e-5) and logs["policy/approxkl_avg"] < 1e-9
    error = 0.0 if math.isnan(error) else error
    share = len(rollout.ended) / float(rollout.completion_mask.sum())
    assert logs["sampling/sampling_logp_difference/max"] == pytest.approx(error, abs=1e-5)
    assert logs["sampling/sampling_logp_difference/mean"] == pytest.approx(error * share, abs=1e-5)


def test_transformers_reports_no_difference(tmp_path):
    trainer = make("terminal", tmp_path, max_steps=4, eval_strategy="no", save_strategy="no")
    trainer.train()
    assert not [name for entry in trainer.state.log_history for name in entry if name.startswith("sampling/")]


# --- what vLLM is given -----------------------------------------------------------------------------------------------


def test_settings_reach_vllm(tmp_path):
    settings = {
        "vllm_gpu_memory_utilization": 0.5,
        "vllm_max_model_length": 20,
        "vllm_model_impl": "transformers",
        "vllm_enable_sleep_mode": True,
    }
    with vllm("colocate", tmp_path):
        fake = make("terminal", tmp_path, "colocate", per_device_eval_batch_size=16, **settings).fake
    assert (fake.max_model_len, fake.enable_sleep_mode) == (20, True)
    expected = {"gpu_memory_utilization": 0.5, "model_impl": "transformers", "max_num_seqs": 16}
    assert {name: fake.settings[name] for name in expected} == expected
    assert fake.settings["trust_remote_code"] is False


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_prompts_reach_vllm_without_padding(mode, tmp_path):
    with vllm(mode, tmp_path):
        trainer = make("terminal", tmp_path, mode)
        trainer.evaluate()
    rows = ppo_runs.prompts(5, seed=1)["input_ids"]
    assert [prompts for prompts, _ in trainer.fake.requests] == [rows[:4], rows[4:]]
    assert len({len(row) for row in rows[:4]}) > 1


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_a_completion_that_vllm_cut_off_is_an_error(mode, tmp_path):
    with vllm(mode, tmp_path):
        trainer = make("terminal", tmp_path, mode)
        trainer.fake.max_model_len = 9
        with pytest.raises(RuntimeError, match="not `response_length=8` and does not end with the stop token \\(1\\)"):
            trainer.train()


def test_a_prompt_too_long_for_vllm_is_an_error(tmp_path):
    with vllm("colocate", tmp_path):
        trainer = make("terminal", tmp_path, "colocate", vllm_max_model_length=12)
        with pytest.raises(ValueError, match="do not fit in `vllm_max_model_length=12`"):
            trainer.train()


def test_a_policy_made_in_memory_is_an_error(tmp_path):
    def forget(policy):
        policy.name_or_path = ""
        return policy

    with vllm("colocate", tmp_path), pytest.raises(ValueError, match="it was made in memory"):
        make("terminal", tmp_path, "colocate", change_policy=forget)


def test_trained_modules_of_an_adapter_with_a_name_are_an_error(tmp_path):
    pytest.importorskip("peft")

    def change_policy(policy):
        return ppo_runs.lora(policy, "policy", modules_to_save=["lm_head"])

    with vllm("colocate", tmp_path), pytest.raises(ValueError, match="of one adapter alone, which is named 'default'"):
        make("terminal", tmp_path, "colocate", change_policy=change_policy)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match="pip install trl-tokenreward\\[vllm\\]"):
        make("terminal", tmp_path, "colocate")


# --- two processes ----------------------------------------------------------------------------------------------------


# An evaluation whose last batch does not come out even: the first process has two of its rows, the second one.
TWO = {"max_steps": 8, "eval_strategy": "no", "save_strategy": "no", "eval_temperature": 0.0}
MODES = ("colocate", "server")


def run_two(directory, mode, checkpoint=None):
    context = vllm(mode, directory, checkpoint=checkpoint) if mode else nullcontext()
    with context:
        trainer = make("terminal", directory, mode, checkpoint=checkpoint, **TWO)
        trainer.train()
        return trainer, trainer.evaluate(ppo_runs.prompts(7, seed=2))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    launch(__file__, directory, save_checkpoint(directory))
    return directory


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_two_processes(mode, two, tmp_path):
    trainer, metrics = run_two(tmp_path, None)
    tensors, logs = ppo_runs.outcome(trainer)
    for rank in (0, 1):
        outcome = ppo_runs.load_outcome(two / f"{mode}-{rank}", rank)
        assert set(outcome[0]) == set(tensors)
        assert_close(outcome, (tensors, logs))
    # The samples differ in length, so that a mixed-up slice would show.
    assert metrics["eval_completions/mean_length"] not in (1, 8)


def main():
    output, checkpoint = sys.argv[1:]
    for mode in MODES:
        # Each process has the stand-ins to itself, but only the first speaks to the server.
        rank = ppo_runs.PartialState(cpu=True).process_index
        directory = Path(output) / f"{mode}-{rank}"
        directory.mkdir()
        trainer, _ = run_two(directory, mode, checkpoint)
        if mode == "colocate" or rank == 0:
            assert_weights(trainer)
        tensors, logs = ppo_runs.outcome(trainer)
        save_file(tensors, directory / f"outcome-{rank}.safetensors")
        (directory / f"outcome-{rank}.json").write_text(json.dumps({"logs": logs}))


if __name__ == "__main__":
    main()
