"""What the tests of reward_model share: model cases."""

import torch

import tiny
from trl_tokenreward import TokenRewardModel


FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]


# Memory-mapped weights are aligned otherwise than allocated ones, which changes the last bit of some products.
SAME = {"rtol": 1e-5, "atol": 1e-5}


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, **SAME)


def reward_model(family: str = "llama", **kwargs) -> TokenRewardModel:
    """In evaluation mode, with both heads far from zero, so that differences show."""
    model = TokenRewardModel.from_backbone(tiny.causal_lm(family, **kwargs)).eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(model.score.weight)
    torch.nn.init.normal_(model.token_score.weight)
    torch.nn.init.constant_(model.token_score.bias, 0.25)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded rows of 7, 4 and 1 tokens; no pad token (0) within."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    return torch.randint(3, 300, mask.shape, generator=generator) * mask, mask


# The layers that an adapter changes, in each family.
LORA_TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
}
