"""GRPO with rewards of tokens, with tools and environments: TRL calls them, and what they wrote gets no advantage."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.chat_template_utils import qwen3_chat_template

import tiny
from grpo_runs import kept_batches
from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer
from trl_tokenreward.grpo.functional import group_advantages


pytestmark = pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")

CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>'
ANSWERS = ["It is 12.<|im_end|>", "It is 13.<|im_end|>"]  # of a group of two
GROUP = len(ANSWERS)


def multiply(a: int, b: int) -> int:
    """
    Multiplies two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


class Calculator:
    def reset(self, **_):
        self.calls = 0

    def multiply(self, a: int, b: int) -> int:
        """
        Multiplies two numbers.

        Args:
            a: The first.
            b: The second.
        """
        self.calls += 1
        return a * b


class Scripted(FineGrainedGRPOTrainer):
    """Its policy calls the tool, and then answers."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self.turns = getattr(self, "turns", 0) + 1
        texts = [CALL] * GROUP if self.turns == 1 else ANSWERS
        ids = [self.processing_class(text)["input_ids"] for text in texts]
        return ids, [[-1.0] * len(row) for row in ids]


@pytest.mark.parametrize("kind", ["tools", "environment_factory"])
def test_what_a_tool_wrote_gets_neither_reward_nor_advantage(kind, tmp_path):
    tokenizer = tiny.tokenizer(vocab_size=400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = qwen3_chat_template
    folder = str(tmp_path / "policy")
    tiny.causal_lm(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    seen = []

    def reward(completion_ids, **_):
        """For each token, also for those of the tool."""
        seen.append(completion_ids)
        return [[1.0 + (i % 3) for i in ids] for ids in completion_ids]

    trainer = Scripted(
        AutoModelForCausalLM.from_pretrained(folder),
        reward,
        FineGrainedGRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=400,
            max_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        Dataset.from_dict({"prompt": [[{"role": "user", "content": "What is 3 times 4?"}]] * GROUP}),
        processing_class=tokenizer,
        **{kind: [multiply] if kind == "tools" else Calculator},
    )
    kept = kept_batches(trainer)
    trainer.train()
    (output,) = kept
    assert trainer.turns == 2
    mask, own = output["completion_mask"], output["tool_mask"]
    for row, answer in enumerate(ANSWERS):
        ids = output["completion_ids"][row]
        assert tokenizer.decode(ids[(mask * own)[row].bool()]) == CALL + answer
        by_tool = tokenizer.decode(ids[(mask * (1 - own))[row].bool()])
        assert "<tool_response>\n12\n</tool_response>" in by_tool
    assert [len(ids) for ids in seen[0]] == mask.sum(1).tolist()
    assert (output["advantages"] * (1 - mask * own) == 0).all()
    # As if the tool's tokens had not been there.
    packed = [output["completion_ids"][row][(mask * own)[row].bool()] for row in range(GROUP)]
    width = max(map(len, packed))
    rewards, packed_mask = torch.zeros(GROUP, width), torch.zeros(GROUP, width, dtype=torch.long)
    for row, ids in enumerate(packed):
        rewards[row, : len(ids)] = 1.0 + ids % 3
        packed_mask[row, : len(ids)] = 1
    expected = group_advantages(rewards, packed_mask.bool(), packed_mask, GROUP, "process", "group")
    for row, ids in enumerate(packed):
        actual = output["advantages"][row][(mask * own)[row].bool()]
        torch.testing.assert_close(actual, expected[row, : len(ids)], atol=1e-5, rtol=1e-5)
