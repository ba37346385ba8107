"""The commands that TRL 1.12 documents for PPO and reward models, after the change of names.

They are run as they stand, but on tiny local models and data, on the CPU, and PPO for two updates. Launchers are left
out: how processes are started changes no option.
"""

import json
import runpy
import shlex
import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny
from reward_trainer_cases import ROWS
from trl_tokenreward import TokenRewardModel


SCRIPTS = Path(__file__).parents[1] / "support" / "scripts"
NAMES = {
    "from trl.experimental.ppo import PPOConfig": "from trl_tokenreward import FineGrainedPPOConfig as PPOConfig",
    ", PPOTrainer\n": ", FineGrainedPPOTrainer as PPOTrainer\n",
    "ModelConfig, RewardConfig, RewardTrainer, ": "ModelConfig, ",
    "\n\nif __name__": "\nfrom trl_tokenreward import TokenRewardConfig as RewardConfig, TokenRewardTrainer as RewardTrainer"
    "\n\n\nif __name__",
}
SENTIMENT = (
    "--dataset_name trl-internal-testing/descriptiveness-sentiment-trl-style --dataset_train_split descriptiveness"
)
TLDR = "--dataset_name trl-lib/tldr --dataset_test_split validation"
PYTHIA = "--model_name_or_path EleutherAI/pythia-1b-deduped"
BOTH = "--sft_model_path EleutherAI/pythia-1b-deduped --reward_model_path EleutherAI/pythia-1b-deduped"
TLDR_MODELS = (
    f"{PYTHIA} --sft_model_path cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr "
    "--reward_model_path cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr"
)
PPO = {
    "the page, get started": f"{SENTIMENT} --learning_rate 3e-6 --num_ppo_epochs 1 --num_mini_batches 1 "
    f"--output_dir models/minimal/ppo --per_device_train_batch_size 64 --gradient_accumulation_steps 1 "
    f"--total_episodes 10000 {PYTHIA} {BOTH} --missing_eos_penalty 1.0",
    "the page, benchmark": "--output_dir models/minimal/ppo_tldr --learning_rate 3e-6 --per_device_train_batch_size 16 "
    f"--gradient_accumulation_steps 4 --total_episodes 1000000 {TLDR_MODELS} --local_rollout_forward_batch_size 16 "
    "--missing_eos_penalty 1.0 --stop_token eos",
    "ppo.py, one process": f"{SENTIMENT} --learning_rate 3e-6 --output_dir ppo --per_device_train_batch_size 64 "
    f"--gradient_accumulation_steps 1 --total_episodes 10000 {PYTHIA} --missing_eos_penalty 1.0",
    "ppo.py, several": f"{SENTIMENT} --output_dir ppo --num_ppo_epochs 1 --num_mini_batches 1 --learning_rate 3e-6 "
    f"--per_device_train_batch_size 1 --gradient_accumulation_steps 16 --total_episodes 10000 {PYTHIA} {BOTH} "
    "--local_rollout_forward_batch_size 1 --missing_eos_penalty 1.0",
    "ppo_tldr.py, one process": f"{TLDR} --learning_rate 3e-6 --output_dir ppo --per_device_train_batch_size 1 "
    f"--gradient_accumulation_steps 64 --total_episodes 30000 {TLDR_MODELS} --missing_eos_penalty 1.0 --stop_token eos "
    "--response_length 53 --eval_strategy steps --eval_steps 100",
    "ppo_tldr.py, several": f"{TLDR} --output_dir ppo --learning_rate 3e-6 --per_device_train_batch_size 16 "
    f"--gradient_accumulation_steps 4 --total_episodes 1000000 {TLDR_MODELS} --local_rollout_forward_batch_size 16 "
    "--missing_eos_penalty 1.0 --stop_token eos --eval_strategy steps --eval_steps 100",
}
ULTRAFEEDBACK = "--dataset_name trl-lib/ultrafeedback_binarized"
QWEN = f"--model_name_or_path Qwen/Qwen2-0.5B-Instruct {ULTRAFEEDBACK} --per_device_train_batch_size 8"
REWARD = {
    "trl reward": f"--model_name_or_path Qwen/Qwen2.5-0.5B-Instruct {ULTRAFEEDBACK}",
    "full": f"{QWEN} --output_dir Qwen2-0.5B-Reward --num_train_epochs 1 --learning_rate 1.0e-5 --eval_strategy steps "
    "--eval_steps 50 --max_length 2048",
    "LoRA": f"{QWEN} --output_dir Qwen2-0.5B-Reward-LoRA --num_train_epochs 1 --learning_rate 1.0e-4 "
    "--eval_strategy steps --eval_steps 50 --max_length 2048 --use_peft --lora_task_type SEQ_CLS --lora_r 32 "
    "--lora_alpha 16",
}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, Path]:
    """Folders that stand for the names in the commands."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None  # scripts add one
    models = {"sft": tiny.causal_lm(), "reward": tiny.sequence_classifier(), "qwen": tiny.causal_lm("qwen2")}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = [*tiny.CORPUS[:2], *(f"Human: {word}" for word in "one two three four five six seven".split())]
    tables = {
        "sentiment": {"descriptiveness": [{"prompt": prompt} for prompt in prompts]},
        "tldr": {split: [{"prompt": prompt} for prompt in prompts] for split in ("train", "validation")},
        "pairs": dict.fromkeys(("train", "test"), ROWS),
    }
    for name, splits in tables.items():
        (folder / name).mkdir()
        for split, rows in splits.items():
            # A folder for each split, since files are told to splits by few names alone.
            Dataset.from_list(rows).to_parquet(folder / name / f"{split}.parquet")
        files = [{"split": split, "path": f"{split}.parquet"} for split in splits]
        configs = "configs:\n- config_name: default\n  data_files: " + json.dumps(files)
        (folder / name / "README.md").write_text(f"---\n{configs}\n---\n")
    return {
        "trl-internal-testing/descriptiveness-sentiment-trl-style": folder / "sentiment",
        "trl-lib/tldr": folder / "tldr",
        "trl-lib/ultrafeedback_binarized": folder / "pairs",
        "EleutherAI/pythia-1b-deduped": folder / "sft",
        "EleutherAI/pythia-160m": folder / "sft",
        "cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr": folder / "sft",
        "cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr": folder / "reward",
        "Qwen/Qwen2-0.5B-Instruct": folder / "qwen",
        "Qwen/Qwen2.5-0.5B-Instruct": folder / "qwen",
    }


@pytest.fixture
def run(local, tmp_path, monkeypatch):
    """Run a script with its names changed; gives its variables."""

    def run_script(name: str, command: str, *options: str) -> dict:
        source = (SCRIPTS / name).read_text()
        for old, new in NAMES.items():
            source = source.replace(old, new)
        (tmp_path / name).write_text(source)
        words = [str(local.get(word, word)) for word in shlex.split(command)]
        options = [*options, "--use_cpu", "--bf16", "False", "--report_to", "none", "--disable_tqdm", "True"]
        monkeypatch.setattr(sys, "argv", [name, *words, *options, "--output_dir", str(tmp_path / "output")])
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        return runpy.run_path(name, run_name="__main__")

    return run_script


# These sample or score row by row.
SLOW = ("ppo.py, several", "ppo_tldr.py, one process")


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, command in PPO.items()],
)
def test_ppo(run, local, tmp_path, command):
    words = shlex.split(command)
    size = int(words[words.index("--per_device_train_batch_size") + 1])
    size *= int(words[words.index("--gradient_accumulation_steps") + 1])
    missing = {"--sft_model_path": "EleutherAI/pythia-160m", "--reward_model_path": "EleutherAI/pythia-160m"}
    # The defaults of the configuration are names on the Hub too; the benchmark's are the script's.
    options = [str(word) for name, path in missing.items() if name not in words for word in (name, local[path])]
    if "--dataset_name" not in words:
        options += ["--dataset_name", str(local["trl-lib/tldr"])]
    trainer = run("ppo_script.py", command, *options, "--total_episodes", str(2 * size))["trainer"]
    assert trainer.schedule.num_updates == 2 and trainer.state.global_step == trainer.schedule.num_steps
    assert trainer.args.missing_eos_penalty == 1.0
    AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "output" / "value_model")


@pytest.mark.parametrize("command", REWARD.values(), ids=REWARD)
def test_reward(run, tmp_path, command):
    trainer = run("reward_script.py", command)["trainer"]
    assert trainer.state.global_step > 0
    assert ("--eval_strategy" in command) == any("eval_loss" in entry for entry in trainer.state.log_history)
    if "--use_peft" in command:
        assert (tmp_path / "output" / "adapter_model.safetensors").exists()
        return
    saved = TokenRewardModel.from_pretrained(tmp_path / "output")
    for name, weight in saved.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name
