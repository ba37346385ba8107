"""Reward functions: a part of the tests of completion_scorer."""

import re

import numpy as np
import pytest
import torch

import tiny
from scorer_cases import TWO_ROWS
from trl_tokenreward.ppo.completion_scorer import CompletionScorer


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1.5, -2], [[0, 0, 0, 1.5], [0, -2, 0, 0]]),
        (torch.tensor([1.5, -2]), [[0, 0, 0, 1.5], [0, -2, 0, 0]]),
        (np.array([1.5, -2]), [[0, 0, 0, 1.5], [0, -2, 0, 0]]),
        ([True, False], [[0, 0, 0, 1], [0, 0, 0, 0]]),
        ([[1, 2, 3, 4.5], [5, 6]], [[1, 2, 3, 4.5], [5, 6, 0, 0]]),
        ([(1, 2, 3, 4.5), torch.tensor([5, 6])], [[1, 2, 3, 4.5], [5, 6, 0, 0]]),
        ([np.array([1, 2, 3, 4.5]), np.array([5, 6])], [[1, 2, 3, 4.5], [5, 6, 0, 0]]),
    ],
)
def test_what_a_function_may_return(returned, expected):
    scorer = CompletionScorer(lambda **kwargs: returned, tiny.word_tokenizer())
    assert scorer.raw_scores(*TWO_ROWS).values.tolist() == expected


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0], ValueError, "returned 1 scores for 2 completions"),
        (None, TypeError, "The reward function '<lambda>' returned a NoneType, where a list of 2 entries is due"),
        (1.0, TypeError, "returned a float, where a list of 2 entries is due"),
        (torch.tensor(1.0), TypeError, "returned tensor(1.), where a list of 2 entries is due"),
        (np.float64(1.0), TypeError, "where a list of 2 entries is due"),
        ({0.5: "a", 1.5: "b"}, TypeError, "returned a dict, where"),
        ({0.5: "a", 1.5: "b"}.keys(), TypeError, "returned a dict_keys, where"),
        ({0.5, 1.5}, TypeError, "returned a set, where"),
        ("12", TypeError, "returned a str, where"),
        ((score for score in (1.0, 2.0)), TypeError, "returned a generator, where"),
        ([1.0, [1.0, 2.0]], ValueError, "floats and lists of floats"),
        ([[1, 2, 3, 4], [5, 6, 7]], ValueError, "returned 3 token scores for completion 1, which has 2 tokens"),
        ([[1, 2, 3, 4], []], ValueError, "returned 0 token scores for completion 1"),
        ([1.0, None], TypeError, "returned None for completion 1"),
        ([1.0, "good"], TypeError, "returned 'good' for completion 1"),
        ([[1, 2, 3, None], [5, 6]], TypeError, "for completion 0, where a finite float or one per token is due"),
        ([float("nan"), 1.0], ValueError, "returned nan for completion 0"),
        ([[1, 2, 3, 4], [5, float("inf")]], ValueError, "returned [5, inf] for completion 1"),
        (torch.zeros(2, 1, 1), ValueError, "for completion 0"),
    ],
)
def test_what_a_function_may_not_return(returned, error, message):
    scorer = CompletionScorer(lambda **kwargs: returned, tiny.word_tokenizer())
    with pytest.raises(error, match=re.escape(message)):
        scorer.raw_scores(*TWO_ROWS)


def test_a_coroutine_is_no_list():
    async def reward(**kwargs):
        return [1.0, 2.0]

    scorer = CompletionScorer(reward, tiny.word_tokenizer())
    with pytest.raises(TypeError, match="The reward function 'reward' is an `async` function"):
        scorer.raw_scores(*TWO_ROWS)


def test_a_function_may_not_change_its_mind():
    returned = iter([[1.0, 2.0], [[1, 2, 3, 4], [5, 6]]])
    scorer = CompletionScorer(lambda **kwargs: next(returned), tiny.word_tokenizer())
    scorer.raw_scores(*TWO_ROWS)
    with pytest.raises(ValueError, match="changed between one float and one float per token"):
        scorer.raw_scores(*TWO_ROWS)


@pytest.mark.parametrize("density", ["token", "sentence"])
def test_one_float_cannot_be_spread(density):
    scorer = CompletionScorer(lambda **kwargs: [1.0, 2.0], tiny.word_tokenizer(), density=density)
    with pytest.raises(
        ValueError, match=f"`reward_density='{density}'` needs a reward function that returns one float"
    ):
        scorer.raw_scores(*TWO_ROWS)


def test_a_function_computes_in_its_own_precision(scenario):
    seen = []

    def reward(completions, **columns):
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return [0.0] * len(completions)

    scenario.train(reward=reward, bf16=True)
    assert seen == [(False, False)]
