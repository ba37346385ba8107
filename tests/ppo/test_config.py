"""FineGrainedPPOConfig: TRL's fields and defaults, checks, command line."""

import math
import re
from dataclasses import MISSING, fields

import pytest
from transformers import HfArgumentParser
from trl import ModelConfig, ScriptArguments, TrlParser

from trl_tokenreward import FineGrainedPPOConfig
from trl_tokenreward._trl import TRL_HAS_PPO, BaseConfig, PPOConfig
from trl_tokenreward._trl_ppo_config import PPOConfig as VendoredConfig
from trl_tokenreward.ppo.config import logger


# What TRL 1.12's PPOConfig adds to its base class, with its defaults.
TRL_DEFAULTS = {
    "learning_rate": 3e-6,
    "dataset_num_proc": None,
    "num_mini_batches": 1,
    "total_episodes": None,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token": None,
    "stop_token_id": None,
    "temperature": 0.7,
    "missing_eos_penalty": None,
    "sft_model_path": "EleutherAI/pythia-160m",
    "push_to_hub": False,
    "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": None,
    "ref_adapter_name": None,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
}
# What TRL 1.12's trainer writes into its configuration.
COMPUTED = (
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
)
OURS = {
    "max_prompt_length": None,
    "log_completions": False,
    "num_completions_to_log": 8,
    "reward_signal": None,
    "reward_density": None,
    "token_score_transform": None,
    "reward_scale": None,
    "center_rewards": None,
    "reward_clip": None,
    "sequence_score_coef": 0.0,
    "hold_length": None,
    "target_length": None,
    "kl_target": None,
    "reward_aggregation": "sum",
    "reward_weights": None,
    "reward_settings": None,
    "bootstrap_truncated": False,
    "share_base": None,
    "share_value_backbone": False,
    "eval_temperature": None,
    "use_vllm": False,
    "vllm_mode": "colocate",
    "vllm_model_impl": "vllm",
    "vllm_enable_sleep_mode": False,
    "vllm_server_base_url": None,
    "vllm_server_host": "0.0.0.0",
    "vllm_server_port": 8000,
    "vllm_server_timeout": 240.0,
    "vllm_group_port": 51216,
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_max_model_length": None,
    "vllm_tensor_parallel_size": 1,
}
# Another value than the default for what has an effect in one of vLLM's modes alone.
COLOCATE = {
    "vllm_model_impl": "transformers",
    "vllm_enable_sleep_mode": True,
    "vllm_gpu_memory_utilization": 0.5,
    "vllm_max_model_length": 100,
    "vllm_tensor_parallel_size": 2,
}
SERVER = {
    "vllm_server_host": "localhost",
    "vllm_server_port": 8001,
    "vllm_server_timeout": 10.0,
    "vllm_group_port": 51217,
}
URL = {"vllm_server_base_url": "http://localhost:8000"}
VLLM_SERVER = {"use_vllm": True, "vllm_mode": "server"}


def config(tmp_path, **kwargs):
    return FineGrainedPPOConfig(output_dir=str(tmp_path), use_cpu=True, **kwargs)


def own_fields(config_class):
    """Fields that a class adds to TRL's base class, or gives another default."""
    inherited = {f.name: f.default for f in fields(BaseConfig)}
    return {
        f.name: f.default for f in fields(config_class) if inherited.get(f.name, MISSING) != f.default or f.name not in inherited
    }  # fmt: skip


def test_fields_and_defaults():
    defaults = {f.name: f.default for f in fields(FineGrainedPPOConfig)}
    expected = TRL_DEFAULTS | OURS
    assert {name: defaults[name] for name in expected} == expected


def test_nothing_else_differs_from_the_base_class():
    inherited = set(COMPUTED) if TRL_HAS_PPO else set()
    assert own_fields(FineGrainedPPOConfig).keys() <= TRL_DEFAULTS.keys() | OURS.keys() | inherited


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOConfig")
def test_every_field_of_trls_has_its_default_and_type():
    ours = {f.name: f for f in fields(FineGrainedPPOConfig)}
    for field in fields(PPOConfig):
        assert ours[field.name].default == field.default, field.name
        assert ours[field.name].type == field.type, field.name
    assert own_fields(PPOConfig) == {
        name: (TRL_DEFAULTS | dict.fromkeys(COMPUTED))[name] for name in own_fields(PPOConfig)
    }


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOConfig")
def test_the_vendored_base_class_is_trls():
    ours = {f.name: (f.type, f.default) for f in fields(VendoredConfig)}
    theirs = {f.name: (f.type, f.default) for f in fields(PPOConfig) if f.name not in COMPUTED}
    assert ours == theirs
    assert issubclass(FineGrainedPPOConfig, PPOConfig)


def test_defaults_of_trls_base_class(tmp_path):
    args = config(tmp_path)
    assert (args.logging_steps, args.gradient_checkpointing, args.bf16) == (10, True, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "Launch with `accelerate launch"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size=True` has no effect on PPO: leave it at False."),
        ({"dataloader_num_workers": 2}, "`dataloader_num_workers=2` has no effect"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1` has no effect"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha=5.0` has no effect"),
        ({"use_liger_kernel": True}, "`use_liger_kernel=True` has no effect"),
        ({"bf16_full_eval": True}, "`bf16_full_eval=True` has no effect"),
        ({"dataloader_drop_last": True}, "`dataloader_drop_last=True` has no effect"),
        ({"average_tokens_across_devices": False}, "`average_tokens_across_devices=False` has no effect on PPO: leave it at True."),
        ({"batch_eval_metrics": True}, "`batch_eval_metrics=True` has no effect"),
        ({"eval_do_concat_batches": False}, "`eval_do_concat_batches=False` has no effect"),
        ({"eval_use_gather_object": True}, "`eval_use_gather_object=True` has no effect"),
        ({"include_for_metrics": ["loss"]}, "`include_for_metrics=['loss']` has no effect"),
        ({"include_num_input_tokens_seen": True}, "`include_num_input_tokens_seen='all'` has no effect on PPO: leave it at 'no'."),
        ({"label_names": ["labels"]}, "`label_names=['labels']` has no effect on PPO: leave it at None."),
        ({"liger_kernel_config": {"rope": True}}, "`liger_kernel_config={'rope': True}` has no effect"),
        ({"train_sampling_strategy": "sequential"}, "`train_sampling_strategy='sequential'` has no effect"),
        *(({name: math.nan}, f"`{name}` is NaN.") for name in ("kl_coef", "temperature", "reward_scale", "learning_rate", "gamma")),
        *(({"reward_scale": value}, f"`reward_scale` must be a finite number and not 0, with which nothing is learned, got {value}.") for value in (0, 0.0, math.inf)),
        ({"reward_settings": [{"reward_scale": 0.0}, {}]}, "`reward_settings[0]`: `reward_scale` must be a finite number and not 0"),
        ({"reward_weights": [0.0, 0]}, "`reward_weights` are all 0, so nothing is learned"),
        ({"kl_estimator": "k2"}, "`kl_estimator` must be one of ('k1', 'k3'), got 'k2'."),
        ({"stop_token": "period"}, "`stop_token` must be one of (None, 'eos'), got 'period'."),
        ({"reward_signal": "tokens"}, "`reward_signal` must be one of"),
        ({"reward_density": "word"}, "`reward_density` must be one of"),
        *(({name: 0}, f"`{name}` must be positive, got 0.") for name in ("num_mini_batches", "num_ppo_epochs", "local_rollout_forward_batch_size", "response_length", "temperature", "total_episodes", "reward_clip", "kl_target", "target_length")),
        ({"temperature": -1.0}, "`temperature` must be positive, got -1.0."),
        ({"missing_eos_penalty": -1.0, "stop_token": "eos"}, "`missing_eos_penalty` must be positive, got -1.0."),
        ({"eval_temperature": -0.1}, "`eval_temperature` must not be negative, got -0.1."),
        ({"stop_token": "eos", "stop_token_id": 0}, "Set `stop_token` or `stop_token_id`, not both."),
        ({"total_episodes": 8, "max_steps": 8}, "Set `total_episodes` or `max_steps`, not both"),
        ({"reward_signal": "sequence_score", "reward_density": "token"}, "set `reward_density='potential'`"),
        ({"reward_signal": "sequence_score", "reward_density": "sentence"}, "set `reward_density='potential'`"),
        ({"reward_signal": "token_scores", "reward_density": "potential"}, "`reward_density='potential'` spreads the sequence"),
        ({"token_score_transform": "tanh"}, "`token_score_transform` must be one of"),
        ({"token_score_transform": "log_sigmoid", "reward_signal": "sequence_score"}, "`token_score_transform` has no effect"),
        ({"sequence_score_coef": -1.0}, "`sequence_score_coef` must be finite and not negative, got -1.0."),
        ({"sequence_score_coef": 1.0, "reward_signal": "sequence_score"}, "`sequence_score_coef` has no effect"),
        ({"hold_length": True}, "`hold_length` has no effect without a stop token"),
        ({"target_length": 12.0}, "`target_length` has no effect without `hold_length=True`."),
        ({"kl_target": 3.0, "kl_coef": 0.0}, "`kl_target` adapts `kl_coef` by factors, so it needs one above 0."),
        ({"model_adapter_name": "a"}, "`model_adapter_name` has an effect only together with `ref_adapter_name`."),
        *(({name: value}, f"`{name}` has no effect without `use_vllm=True`.") for name, value in (COLOCATE | SERVER | URL | {"vllm_mode": "server"}).items()),
        *(({"use_vllm": True, name: value}, f"`{name}` has no effect in `vllm_mode='colocate'`.") for name, value in (SERVER | URL).items()),
        *(({**VLLM_SERVER, name: value}, f"`{name}` has no effect in `vllm_mode='server'`. Give it to `vllm serve`.") for name, value in COLOCATE.items()),
        ({**VLLM_SERVER, **URL, "vllm_server_host": "localhost"}, "Set `vllm_server_base_url`, or `vllm_server_host` and `vllm_server_port`, not both."),
        ({**VLLM_SERVER, **URL, "vllm_server_port": 8001}, "Set `vllm_server_base_url`, or"),
        ({"use_vllm": True, "vllm_mode": "elsewhere"}, "`vllm_mode` must be one of ('colocate', 'server'), got 'elsewhere'."),
        ({"use_vllm": True, "vllm_model_impl": "terratorch"}, "`vllm_model_impl` must be one of ('vllm', 'transformers')"),
        ({"use_vllm": True, "temperature": 0.005}, "`temperature=0.005`: vLLM samples at 0.01 instead of at less."),
        ({"use_vllm": True, "eval_temperature": 0.005}, "`eval_temperature=0.005`: vLLM samples at 0.01"),
    ],
)  # fmt: skip
def test_errors(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_clip": "1"}, "`reward_clip` must be a number, but is '1'. Write it without quotes"),
        ({"learning_rate": "1e-4"}, "`learning_rate` must be a number, but is '1e-4'. Write it without quotes"),
        ({"response_length": "many"}, "`response_length` must be a whole number, but is 'many'."),
        ({"response_length": 53.0}, "`response_length` must be a whole number, but is 53.0."),
        ({"reward_clip": True}, "`reward_clip` must be a number, but is True."),
        ({"hold_length": "yes"}, "`hold_length` must be `True` or `False`, but is 'yes'."),
        ({"reward_settings": {"reward_clip": 1.0}}, "`reward_settings` must be a list, but is {"),
        ({"reward_settings": [{}, {"reward_scale": "2"}]}, "`reward_settings[1]`: `reward_scale` must be a number"),
    ],
)
def test_values_of_another_type(tmp_path, settings, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        config(tmp_path, **settings)


def test_unknown_settings_are_errors(tmp_path):
    with pytest.raises(TypeError, match="reward_densty"):
        config(tmp_path, reward_densty="token")


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_token_id": 0, "missing_eos_penalty": 1.0},
        {"missing_eos_penalty": 1.0},
        {"eval_temperature": 0.0},
        {"reward_density": "potential"},
        {"reward_scale": -1.0},
        {"sequence_score_coef": 0.5, "kl_target": 3.0},
        {"hold_length": True, "target_length": 12.0, "stop_token_id": 3},
        {"model_adapter_name": "policy", "ref_adapter_name": "reference"},
        {"use_vllm": True, **COLOCATE, "temperature": 0.01, "eval_temperature": 0.0},
        {**VLLM_SERVER, **SERVER},
        {**VLLM_SERVER, **URL},
        {"temperature": 0.005},
    ],
)
def test_what_is_allowed(tmp_path, settings):
    args = config(tmp_path, **settings)
    assert {name: getattr(args, name) for name in settings} == settings


ARGUMENTS = [
    "--output_dir", "out", "--use_cpu", "--bf16", "False", "--reward_signal", "sequence_score", "--reward_density", "potential",
    "--reward_clip", "2.5", "--center_rewards", "True", "--eval_temperature", "0", "--stop_token", "eos", "--missing_eos_penalty", "1",
    "--num_mini_batches", "2", "--total_episodes", "100", "--kl_estimator", "k3", "--learning_rate", "1e-5",
]  # fmt: skip
PARSED = {
    "output_dir": "out", "use_cpu": True, "bf16": False, "reward_signal": "sequence_score", "reward_density": "potential",
    "reward_clip": 2.5, "center_rewards": True, "eval_temperature": 0.0, "stop_token": "eos", "missing_eos_penalty": 1.0,
    "num_mini_batches": 2, "total_episodes": 100, "kl_estimator": "k3", "learning_rate": 1e-5, "reward_scale": None,
}  # fmt: skip


def test_trl_parser():
    parser = TrlParser((ScriptArguments, FineGrainedPPOConfig, ModelConfig))
    script_args, args, model_args = parser.parse_args_and_config(
        [*ARGUMENTS, "--dataset_name", "data", "--model_name_or_path", "model"]
    )
    assert {name: getattr(args, name) for name in PARSED} == PARSED
    assert (script_args.dataset_name, model_args.model_name_or_path) == ("data", "model")


def test_trl_parser_reads_a_file(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "output_dir: out\nuse_cpu: true\nreward_density: sentence\nreward_clip: 1.5\n"
    )
    parser = TrlParser((FineGrainedPPOConfig,))
    (args,) = parser.parse_args_and_config(["--config", str(tmp_path / "config.yaml"), "--reward_clip", "3"])
    assert (args.reward_density, args.reward_clip) == ("sentence", 3.0)


def test_hf_argument_parser():
    (args,) = HfArgumentParser((FineGrainedPPOConfig,)).parse_args_into_dataclasses(ARGUMENTS)
    assert {name: getattr(args, name) for name in PARSED} == PARSED


@pytest.mark.parametrize("wrong", [["--reward_density", "word"], ["--no_such_setting", "1"]])
def test_the_command_line_refuses(wrong, capsys):
    parser = TrlParser((FineGrainedPPOConfig,))
    with pytest.raises((SystemExit, ValueError)):
        parser.parse_args_and_config([*ARGUMENTS, *wrong])


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        TrlParser((ScriptArguments, FineGrainedPPOConfig, ModelConfig)).parse_args_and_config(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in TRL_DEFAULTS | OURS)


def test_every_own_field_is_documented():
    for documented, names in ((FineGrainedPPOConfig, OURS), (VendoredConfig, TRL_DEFAULTS)):
        for name in names.keys() - {"push_to_hub"}:  # which is TrainingArguments'
            assert re.search(rf"^ .*\b{name}\b", documented.__doc__, re.MULTILINE), name


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOConfig")
def test_copy_of_trls_config(tmp_path):
    settings = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "kl_coef": 0.3,
        "total_episodes": 7,
        "seed": 9,
        "max_grad_norm": 0.5,
    }
    trls = PPOConfig(**settings)
    trls.batch_size = trls.world_size = 8  # as TRL's trainer writes
    args = FineGrainedPPOConfig.from_ppo_config(trls)
    assert type(args) is FineGrainedPPOConfig
    assert {name: getattr(args, name) for name in settings} == settings
    assert args.batch_size is args.world_size is None
    assert trls.batch_size == 8


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_cannot_be_set(name, tmp_path):
    error, message = (ValueError, "is computed") if TRL_HAS_PPO else (TypeError, "unexpected keyword argument")
    with pytest.raises(error, match=f"{name}.* {message}" if TRL_HAS_PPO else message):
        FineGrainedPPOConfig(str(tmp_path), bf16=False, **{name: 2})


@pytest.mark.parametrize("name", ["logging_strategy", "eval_strategy", "save_strategy"])
def test_strategies_by_epoch_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}='epoch'"):
        FineGrainedPPOConfig(str(tmp_path), bf16=False, **{name: "epoch"})


def test_what_is_left_to_the_reward_model(tmp_path):
    names = ("token_score_transform", "reward_scale", "center_rewards", "reward_clip", "hold_length")

    def resolved(kind, **settings):
        args = config(tmp_path, **settings)
        given = {name: getattr(args, name) for name in names}
        values = args.with_defaults_of([kind])
        assert {name: getattr(args, name) for name in names} == given
        return tuple(getattr(values, name) for name in names)

    assert resolved("log_odds", stop_token="eos") == ("log_sigmoid", 0.2, True, 1.0, True)
    assert resolved("log_odds") == ("log_sigmoid", 0.2, True, 1.0, False)
    assert resolved("other", stop_token="eos") == ("none", 1.0, False, math.inf, False)
    assert resolved("log_ratios", stop_token="eos") == ("none", 1.0, True, 1.0, True)
    own = {"token_score_transform": "none", "reward_scale": 3.0, "center_rewards": False, "reward_clip": 2.0}
    assert resolved("log_odds", **own, hold_length=True, stop_token_id=3) == (*own.values(), True)


def test_a_hold_on_the_length_that_is_off_says_so_once(tmp_path, caplog):
    def resolve(**settings):
        return config(tmp_path, **settings).with_defaults_of(["log_odds"])

    logger.warning_once.cache_clear()
    assert resolve().hold_length is False
    assert resolve().hold_length is False
    assert caplog.text.count("`hold_length` is off: without a stop token") == 1
    assert resolve(hold_length=False).hold_length is False
    assert resolve(stop_token="eos").hold_length is True
    assert caplog.text.count("`hold_length` is off") == 1
