"""What the tests of ppo share: scorer cases."""

import torch

import tiny
from tiny import EOS, PAD, PERIOD, A, B, C, D
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.ppo.prompts import Prompts


# Padding on both sides, and rows of unequal length. What stands in the padding is no pad token.
INPUT_IDS = torch.tensor([[9, 5, 6, 7, 1], [4, 8, 3, 9, 9], [9, 9, 7, 9, 9]])


ATTENTION_MASK = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0]])


def sequence_classifier(family="llama", **kwargs):
    return tiny.sequence_classifier(family, initializer_range=0.3, **kwargs).eval()


def token_reward_model(family="llama", **kwargs):
    model = TokenRewardModel.from_backbone(sequence_classifier(family, **kwargs))
    torch.nn.init.normal_(model.token_score.weight)
    torch.nn.init.constant_(model.token_score.bias, 0.25)
    return model.eval()


def batch(*pairs, pad=PAD):
    """Prompts and completions as tensors, with the rows of a data set beside them."""
    width, length = (max(len(pair[side]) for pair in pairs) for side in (0, 1))
    prompt_ids, completion_ids = torch.full((len(pairs), width), pad), torch.full((len(pairs), length), pad)
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    for row, (prompt, completion) in enumerate(pairs):
        prompt_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, width - len(prompt) :] = 1
        completion_ids[row, : len(completion)] = torch.tensor(completion)
        completion_mask[row, : len(completion)] = 1
    rows = [{"input_ids": prompt} for prompt, _ in pairs]
    return Prompts(prompt_ids, prompt_mask), completion_ids, completion_mask, rows


TWO_ROWS = batch(([A, A, B], [C, PERIOD, D, EOS]), ([B], [D, EOS]))
