"""A script made for TRL's PPOTrainer runs with ours after a change of names, and nothing else."""

import inspect
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel
from trl_tokenreward._trl import TRL_HAS_PPO, PPOConfig, PPOTrainer


SCRIPT = Path(__file__).parents[1] / "support" / "scripts" / "ppo_script.py"
IMPORT = "from trl.experimental.ppo import PPOConfig, PPOTrainer\n"
needs_trls = pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer")


def replaced(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


ORIGINAL = SCRIPT.read_text()
# The migration as documented.
MIGRATED = replaced(
    ORIGINAL,
    (IMPORT, "from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer\n"),
    ("(ScriptArguments, PPOConfig, ModelConfig)", "(ScriptArguments, FineGrainedPPOConfig, ModelConfig)"),
    ("trainer = PPOTrainer(", "trainer = FineGrainedPPOTrainer("),
)
TRAINER_ALONE = replaced(
    ORIGINAL,
    (
        IMPORT,
        "from trl.experimental.ppo import PPOConfig\nfrom trl_tokenreward import FineGrainedPPOTrainer as PPOTrainer\n",
    ),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A policy, a reward model, a token reward model and a data set, as files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None  # the script adds one, as id 300, which the models' 300 embeddings do not have
    token_reward = TokenRewardModel.from_backbone(tiny.sequence_classifier(seed=2))
    torch.nn.init.normal_(token_reward.token_score.weight)
    models = {"sft": tiny.causal_lm(), "reward": tiny.sequence_classifier(), "token-reward": token_reward}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = [*tiny.CORPUS[:4], *(f"Human: {word}" for word in "one two three four five six seven".split())]
    (folder / "prompts").mkdir()
    Dataset.from_dict({"prompt": prompts}).to_json(folder / "prompts" / "train.json")
    return folder


@pytest.fixture
def run(checkpoints, tmp_path, monkeypatch):
    def run_script(source: str, *options: str, reward: str = "reward") -> dict:
        """Run the script in this process; gives its variables."""
        path = tmp_path / "script.py"
        path.write_text(source)
        arguments = {
            "dataset_name": checkpoints / "prompts",
            "sft_model_path": checkpoints / "sft",
            "reward_model_path": checkpoints / reward,
            "output_dir": tmp_path / "output",
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 1,
            "num_ppo_epochs": 2,
            "total_episodes": 8,
            "learning_rate": 1e-2,
            "response_length": 6,
            "stop_token": "eos",
            "missing_eos_penalty": 1.0,
            "num_sample_generations": 1,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        command = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", [str(path), *command, *options])
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        return runpy.run_path(str(path), run_name="__main__")

    return run_script


def moved(saved: Path, start: Path) -> bool:
    """Whether the saved policy is another one than that which training began with."""
    after, before = (AutoModelForCausalLM.from_pretrained(path) for path in (saved, start))
    weights = torch.cat([parameter.flatten() for parameter in after.parameters()])
    assert weights.isfinite().all()
    return not torch.equal(weights, torch.cat([parameter.flatten() for parameter in before.parameters()]))


@needs_trls
def test_the_script_runs_on_trl(run, checkpoints, tmp_path, capsys):
    variables = run(ORIGINAL)
    assert type(variables["trainer"]) is PPOTrainer
    assert moved(tmp_path / "output", checkpoints / "sft")
    assert "model response" in capsys.readouterr().out


def check_run(variables, checkpoints, tmp_path, capsys):
    trainer = variables["trainer"]
    assert type(trainer) is FineGrainedPPOTrainer
    assert isinstance(trainer, PPOTrainer)
    assert trainer.state.global_step == 4  # two updates of two epochs
    assert moved(tmp_path / "output", checkpoints / "sft")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "output" / "value_model")
    # Once after the first update, and once by the script's last line.
    assert capsys.readouterr().out.count("model response") == 2
    assert getattr(variables["training_args"], "batch_size", None) is None  # not written to


def test_a_change_of_names_is_the_migration(run, checkpoints, tmp_path, capsys):
    check_run(run(MIGRATED), checkpoints, tmp_path, capsys)


@needs_trls
def test_trls_config_may_stay(run, checkpoints, tmp_path, capsys):
    variables = run(TRAINER_ALONE)
    assert type(variables["training_args"]) is PPOConfig
    check_run(variables, checkpoints, tmp_path, capsys)


def test_dense_rewards_are_a_matter_of_the_checkpoint(run, checkpoints, tmp_path, capsys):
    variables = run(MIGRATED, reward="token-reward")
    check_run(variables, checkpoints, tmp_path, capsys)
    trainer = variables["trainer"]
    assert type(trainer.reward_model) is type(trainer.value_model) is TokenRewardModel
    rollout = trainer.collect_rollout(0)
    before_the_last = rollout.completion_mask[:, 1:].bool()
    assert before_the_last.any() and (rollout.token_level_scores[:, :-1][before_the_last] != 0).all()


def test_lora_is_one_option(run, tmp_path):
    pytest.importorskip("peft")
    options = ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
    variables = run(MIGRATED, *options)
    assert variables["ref_policy"] is None
    assert (tmp_path / "output" / "adapter_model.safetensors").exists()
    adapter = [p for name, p in variables["trainer"].policy_model.named_parameters() if "lora_B" in name]
    assert adapter and all(parameter.any() for parameter in adapter)  # they begin at zero


# The constructor of TRL 1.12's PPOTrainer.
PARAMETERS = [
    "args",
    "processing_class",
    "model",
    "ref_model",
    "reward_model",
    "train_dataset",
    "value_model",
    "data_collator",
    "eval_dataset",
    "optimizers",
    "callbacks",
    "peft_config",
]


def test_constructor_arguments_have_trls_names_and_order():
    ours = inspect.signature(FineGrainedPPOTrainer).parameters
    assert list(ours)[: len(PARAMETERS)] == PARAMETERS
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in ours.values())
    assert all(ours[name].default is not inspect.Parameter.empty for name in list(ours)[len(PARAMETERS) :])


@needs_trls
def test_constructor_defaults_are_trls():
    trls = inspect.signature(PPOTrainer).parameters
    assert list(trls) == PARAMETERS
    ours = inspect.signature(FineGrainedPPOTrainer).parameters
    for name, parameter in trls.items():
        if parameter.default is not parameter.empty:
            assert ours[name].default == parameter.default


@needs_trls
def test_classes_are_trls():
    assert issubclass(FineGrainedPPOTrainer, PPOTrainer) and issubclass(FineGrainedPPOConfig, PPOConfig)


def test_public_methods_of_trls():
    for name in ("train", "save_model", "generate_completions"):
        assert callable(getattr(FineGrainedPPOTrainer, name))
    assert list(inspect.signature(FineGrainedPPOTrainer.generate_completions).parameters) == ["self", "sampling"]
    assert list(inspect.signature(FineGrainedPPOTrainer.save_model).parameters) == ["self", "output_dir", "_internal_call"]  # fmt: skip
