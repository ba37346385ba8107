"""The examples run as their users run them: as scripts, on files."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from demo_corpus import make_corpus
from shared_data import SHARED_DATA
from train_fine_grained_ppo import load_reward_model
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.utils.loading import load_split


pytestmark = pytest.mark.slow


ROOT = Path(__file__).resolve().parents[2]
HH_RLHF = SHARED_DATA / "hh-rlhf-harmless-base-test.jsonl.gz"


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tiny.causal_lm(max_position_embeddings=2048).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """A folder with two splits: slices of HH-RLHF where it is at hand, dialogues of the same form otherwise."""
    folder = tmp_path_factory.mktemp("data")
    if HH_RLHF.exists():
        with gzip.open(HH_RLHF, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(24), strict=False)]
    else:
        rows = make_corpus(24, seed=0)
    # One prompt is longer than any other.
    rows[0] = {side: text.replace("Human:", "Human:" + " and why" * 450, 1) for side, text in rows[0].items()}
    for split, part in {"train": rows[:16], "test": rows[16:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


COMMON = [
    "--bf16",
    "False",
    "--use_cpu",
    "--report_to",
    "none",
    "--per_device_train_batch_size",
    "4",
    "--save_strategy",
    "no",
]


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.any_trl)], ids=["full", "lora"])
def test_the_two_training_scripts_one_after_the_other(policy_folder, dialogues, tmp_path, lora):
    peft = ["--use_peft", "--lora_r", "2"] if lora else []
    reward_folder = tmp_path / "reward"
    run(
        "train_token_reward.py",
        *("--model_name_or_path", policy_folder, "--dataset_name", dialogues, "--output_dir", reward_folder),
        *("--max_steps", "2", "--max_length", "2048", "--eval_strategy", "steps", "--eval_steps", "2"),
        *COMMON,
        *(peft and [*peft, "--lora_task_type", "SEQ_CLS"]),
    )
    assert (reward_folder / ("adapter_model.safetensors" if lora else "model.safetensors")).exists()
    if lora:  # the PPO script merges the adapter for a policy that is trained in full alone
        loaded = [load_reward_model(str(reward_folder), keep, trust_remote_code=False) for keep in (True, False)]
        assert [type(model).__name__ for model in loaded] == ["PeftModelForSequenceClassification", "TokenRewardModel"]
    else:
        assert TokenRewardModel.from_pretrained(reward_folder).token_head_is_trained
    # As in TRL's script, `--sft_model_path` is the policy where it is given, and the other has the tokenizer.
    policy = (
        ("--model_name_or_path", policy_folder)
        if lora
        else ("--model_name_or_path", reward_folder, "--sft_model_path", policy_folder)
    )
    output = run(
        "train_fine_grained_ppo.py",
        *(*policy, "--reward_model_path", reward_folder, "--dataset_name", dialogues),
        *("--output_dir", tmp_path / "policy", "--total_episodes", "4", "--num_ppo_epochs", "1"),
        *("--response_length", "8", "--stop_token", "eos", "--max_prompt_length", "400", "--logging_steps", "1"),
        *("--eval_strategy", "steps", "--eval_steps", "1", "--kl_coef", "0.3", "--hold_length", "False"),
        *COMMON,
        *peft,
    )
    assert "of 16 rows are kept" in output and "model response" in output
    assert (tmp_path / "policy" / ("adapter_model.safetensors" if lora else "model.safetensors")).exists()
    value_model = tmp_path / "policy" / "value_model"
    assert (value_model / ("adapter_model.safetensors" if lora else "model.safetensors")).exists()

    run(
        "train_fine_grained_grpo.py",
        *("--model_name_or_path", policy_folder, "--reward_model_path", reward_folder, "--dataset_name", dialogues),
        *("--output_dir", tmp_path / "grpo", "--max_steps", "2", "--num_generations", "2"),
        *("--max_completion_length", "8", "--eval_strategy", "steps", "--eval_steps", "2"),
        *("--max_prompt_length", "400"),
        *("--advantage_estimator", "leave_one_out", "--hold_length", "False"),
        *COMMON,
        *peft,
    )
    assert (tmp_path / "grpo" / ("adapter_model.safetensors" if lora else "model.safetensors")).exists()


@pytest.mark.any_trl
def test_the_demo_on_its_own_corpus_and_on_a_file(tmp_path):
    small = ["--rows", "48", "--evaluation-rows", "8", "--updates", "1"]
    run("demo.py", "--output", tmp_path / "own", *small)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in make_corpus(96, seed=1)), encoding="utf-8")
    run("demo.py", "--output", tmp_path / "file", "--dataset", rows, *small)
    for folder in (tmp_path / "own", tmp_path / "file"):
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "win rate against the start policy" in page and "AUROC of wrong tokens" in page
        assert (folder / "curves.png").stat().st_size > 1000
        table = (folder / "table.md").read_text(encoding="utf-8")
        assert "terminal reward" in table and "Reward hacking, dense rewards: " in table
        rates = json.loads((folder / "figures.json").read_text())["win rate against the start policy"]
        assert list(rates) == ["terminal reward", "dense rewards"]
        assert all(f"{rate:.3f} (" in table for rate in rates.values())
        for model in ("start_policy", "reward_model", "terminal_reward", "dense_rewards"):
            assert (folder / model / "model.safetensors").exists()


@pytest.mark.any_trl
def test_the_demo_on_a_model_of_the_users(tmp_path):
    tokenizer = tiny.tokenizer(vocab_size=400, corpus=[row["chosen"] for row in make_corpus(50, seed=2)])
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    tiny.causal_lm(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    small = ["--rows", "16", "--evaluation-rows", "8", "--updates", "1"]
    run("demo.py", "--output", tmp_path / "out", "--model", tmp_path / "model", *small)
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "parameters and start from model." in table and "1 updates of 16 completions" in table
    assert not (tmp_path / "out" / "start_policy").exists()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;assistant&gt;" in page


def test_load_split_says_what_is_wrong(tmp_path):
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(ValueError, match="must end in one of"):
        load_split(tmp_path / "rows.txt", "train")
    from datasets import Dataset, DatasetDict, IterableDataset

    DatasetDict(train=Dataset.from_dict({"a": [1]})).save_to_disk(tmp_path / "saved")
    assert load_split(tmp_path / "saved", "train")[0] == {"a": 1}
    assert isinstance(load_split(tmp_path / "saved", "train", streaming=True), IterableDataset)
    with pytest.raises(ValueError, match="no split 'test'.*train"):
        load_split(tmp_path / "saved", "test")


def test_load_split_takes_folders_and_their_parts(tmp_path):
    for part, text in (("harmless-base", "calm"), ("helpful-base", "kind")):
        (tmp_path / part).mkdir()
        for split in ("train", "test"):
            (tmp_path / part / f"{split}.jsonl").write_text(json.dumps({"chosen": f"{text} {split}"}) + "\n")
    assert load_split(tmp_path, "test", "helpful-base")[0] == {"chosen": "kind test"}
    assert next(iter(load_split(tmp_path, "train", "harmless-base", streaming=True))) == {"chosen": "calm train"}
    with pytest.raises(ValueError, match="'helpful-base' has no effect"):
        load_split(tmp_path / "harmless-base" / "test.jsonl", "train", "helpful-base")
    with pytest.raises(ValueError, match="has one split, 'train'.*name the folder"):
        load_split(tmp_path / "harmless-base" / "test.jsonl", "test")
