"""Golden values are worked out by hand; reductions tie the functions to what is known of them."""

import pytest
import torch

from padded import MASK, tensor, with_junk
from trl_tokenreward.ppo import functional as F


pytestmark = pytest.mark.any_trl


def test_potential_differences_telescope_to_the_sequence_score():
    phi = tensor([0.5, 2.0, -1.0, 7.0], [3.0, 3.5, 9.0, 9.0])
    expected = tensor([0.5, 1.5, -3.0, 0], [3.0, 0.5, 0, 0])
    torch.testing.assert_close(F.potential_differences(phi, MASK), expected)
    torch.testing.assert_close(F.potential_differences(with_junk(phi), MASK), expected)
    assert F.potential_differences(phi, MASK).sum(1).tolist() == [-1.0, 3.5]


def test_redistribute_keeps_the_total_return():
    scores = tensor([1, 2, 4, 9, 9], [1, 10, 100, 1000, 9])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    ends = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 0, 0, 1]])
    assert F.redistribute(scores, mask, "token").tolist() == [[1, 2, 4, 0, 0], [1, 10, 100, 1000, 0]]
    assert F.redistribute(scores, mask, "sentence", ends).tolist() == [[0, 3, 4, 0, 0], [0, 11, 0, 1100, 0]]
    assert F.redistribute(scores, mask, "sequence").tolist() == [[0, 0, 7, 0, 0], [0, 0, 0, 1111, 0]]


def test_redistribute_says_what_is_wrong():
    scores, mask = tensor([1.0, 2.0]), torch.tensor([[1, 1]])
    with pytest.raises(ValueError, match="sentence_ends"):
        F.redistribute(scores, mask, "sentence")
    with pytest.raises(ValueError, match="'word'"):
        F.redistribute(scores, mask, "word")
    with pytest.raises(ValueError, match=r"\(1, 1\).*\(1, 2\)"):
        F.redistribute(scores, mask[:, :1], "token")
    with pytest.raises(ValueError, match="Completion 0"):
        F.redistribute(scores, mask * 0, "sequence")


def test_kl_estimators():
    logps, ref = tensor([-1.0, -2.0]), tensor([-1.5, -1.0])
    assert F.kl_per_token(logps, ref, "k1").tolist() == [[0.5, -1.0]]
    # exp(-.5) - 1 + .5 = .10653066, exp(1) - 1 - 1 = .71828183
    torch.testing.assert_close(F.kl_per_token(logps, ref, "k3"), tensor([0.10653066, 0.71828183]), rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="k2"):
        F.kl_per_token(logps, ref, "k2")


def test_token_level_rewards():
    rewards = F.token_level_rewards(tensor([1, 2, 4, 8], [1, 1, 1, 1]), tensor([1, 1, 2, 9], [0, 2, 9, 9]), MASK, 0.5)
    assert rewards.tolist() == [[0.5, 1.5, 3.0, 0], [1, 0, 0, 0]]


def test_gae_golden():
    # gamma = lam = .5, row 0, from the right: delta_2 = 4 - 3 = 1, A_2 = 1; delta_1 = 0 + .5*3 - 2 = -.5,
    # A_1 = -.5 + .25 = -.25; delta_0 = 1 + .5*2 - 1 = 1, A_0 = 1 - .0625 = .9375.
    rewards, values = tensor([1, 0, 4, 5], [2, 2, 5, 5]), tensor([1, 2, 3, 5], [1, 1, 5, 5])
    advantages, returns = F.gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.9375, -0.25, 1, 0], [1.75, 1, 0, 0]]
    assert returns.tolist() == [[1.9375, 1.75, 4, 0], [2.75, 2, 0, 0]]
    junk = F.gae(with_junk(rewards), with_junk(values), MASK, gamma=0.5, lam=0.5)
    assert junk[0].tolist() == advantages.tolist() and junk[1].tolist() == returns.tolist()


def test_gae_bootstraps_from_the_value_after_the_last_real_token():
    rewards, values = tensor([0, 0, 4, 5], [2, 2, 5, 5]), torch.zeros(2, 4, dtype=torch.float64)
    advantages, _ = F.gae(rewards, values, MASK, 0.5, 0.0, torch.tensor([8.0, 0.0], dtype=torch.float64))
    assert advantages.tolist() == [[0, 0, 8, 0], [2, 2, 0, 0]]


def test_lam_one_is_monte_carlo():
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    advantages, returns = F.gae(rewards, values, MASK, gamma=0.9, lam=1.0)
    for row, length in enumerate((3, 2)):
        for t in range(length):
            monte_carlo = sum(0.9 ** (k - t) * rewards[row, k] for k in range(t, length))
            assert returns[row, t].item() == pytest.approx(monte_carlo.item())
            assert advantages[row, t].item() == pytest.approx((monte_carlo - values[row, t]).item())


def test_a_score_moves_the_advantage_of_its_own_token_alone_when_lam_is_zero():
    torch.manual_seed(0)
    scores, values, kl = (torch.randn(2, 4, dtype=torch.float64) for _ in range(3))
    before, _ = F.gae(F.token_level_rewards(scores, kl, MASK, 0.1), values, MASK, gamma=1.0, lam=0.0)
    scores[0, 1] += 1
    after, _ = F.gae(F.token_level_rewards(scores, kl, MASK, 0.1), values, MASK, gamma=1.0, lam=0.0)
    torch.testing.assert_close(after - before, tensor([0, 1, 0, 0], [0, 0, 0, 0]))


def test_policy_losses():
    # ratios exp(0) = 1, exp(log 1.5) = 1.5, 0.5; clip .2. The pessimistic side: with A = 1 the ratio 1.5 counts 1.2,
    # with A = -1 it counts 1.5; with A = 1 the ratio .5 counts .5, with A = -1 it counts .8.
    old = torch.zeros(1, 5, dtype=torch.float64)
    new = tensor([1.0, 1.5, 1.5, 0.5, 0.5]).log()
    losses, clipped, ratio = F.policy_losses(new, old, tensor([1.0, 1, -1, 1, -1]), 0.2)
    torch.testing.assert_close(losses, tensor([-1.0, -1.2, 1.5, -0.5, 0.8]))
    assert clipped.tolist() == [[False, True, False, False, True]]
    torch.testing.assert_close(ratio, tensor([1.0, 1.5, 1.5, 0.5, 0.5]))


def test_value_losses():
    # old 0, clip .2. V = 1, R = 2: (1-2)^2 = 1 against (.2-2)^2 = 3.24. V = 1, R = 0: 1 against .04.
    losses, clipped = F.value_losses(tensor([1.0, 1.0]), tensor([0.0, 0.0]), tensor([2.0, 0.0]), 0.2)
    torch.testing.assert_close(losses, tensor([1.62, 0.5]))
    assert clipped.tolist() == [[True, False]]


def test_correlation():
    x = torch.tensor([1.0, 2.0, 3.0])
    assert F.correlation(x, 2 * x + 1).item() == pytest.approx(1)
    assert F.correlation(x, -x).item() == pytest.approx(-1)
    assert F.correlation(x, torch.ones(3)).item() == 0


@pytest.mark.parametrize(
    ("row", "mask", "expected"),
    [
        ([5, 6, 7, 8, 9, 5], [1, 1, 1, 1, 1, 1], 0),
        ([5, 6, 7, 5, 6, 7], [1, 1, 1, 1, 1, 1], 1 / 4),
        ([5, 5, 5, 5, 5, 5], [1, 1, 1, 1, 1, 1], 3 / 4),
        ([5, 5, 5, 5, 5, 5], [1, 1, 1, 1, 0, 0], 1 / 2),
        ([5, 5, 5, 5, 5, 5], [1, 1, 1, 0, 0, 0], 0),
        ([5, 5, 5, 5, 5, 5], [1, 1, 0, 0, 0, 0], 0),
    ],
)
def test_repeated_trigrams_by_hand(row, mask, expected):
    others = torch.tensor([[5, 6, 7, 5, 6, 7], [1, 2, 3, 4, 5, 6]])  # another row's n-grams are no repetition
    ids = torch.cat([torch.tensor([row]), others])
    masks = torch.cat([torch.tensor([mask]), torch.ones_like(others)])
    assert F.repeated_ngrams(ids, masks, n=3).tolist() == pytest.approx([expected, 1 / 4, 0])


def test_rows_too_short_for_an_ngram():
    assert F.repeated_ngrams(torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2), n=3).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("coef", "kl", "expected"),
    [
        (0.1, 4.0, 0.1),
        (0.1, 4.4, 0.11),
        (0.1, 400.0, 0.12),
        (0.2, 3.6, 0.18),
        (0.2, 0.0, 0.16),
        (0.1, 0.0, 0.1),
    ],
)
def test_the_kl_coefficient_by_hand(coef, kl, expected):
    assert F.adapted_kl_coef(coef, kl, target=4.0, least=0.1) == pytest.approx(expected)


# Completions of 1, 3 and 3 tokens. On average 7/3 tokens are left at the first, 2 at the second, 1 at the third.
THREE = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
ALONG = torch.tensor([[-4 / 3, 0, 0, 0], [2 / 3, 0, 0, 0], [2 / 3, 0, 0, 0]])


def test_length_advantages_by_hand():
    torch.testing.assert_close(F.length_advantages(THREE), ALONG)
    # Of 2 and 4 tokens: 3, 2, 2 and 1 are left.
    expected = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(F.length_advantages(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])), expected)


def test_length_advantages_are_those_of_a_reward_of_one_a_token():
    lengths = torch.tensor([1, 4, 4, 6, 9, 9, 2])
    mask = (torch.arange(11) < lengths.unsqueeze(1)).long()
    along = F.length_advantages(mask)
    torch.testing.assert_close(along.sum(0), torch.zeros(11), atol=1e-5, rtol=0)
    alive = mask.sum(0).clamp(min=1)
    values = mask * ((lengths.unsqueeze(1) - torch.arange(11)) * mask).sum(0) / alive
    torch.testing.assert_close(along, F.gae(mask.float(), values, mask, gamma=1.0, lam=0.0)[0], atol=1e-5, rtol=0)


def test_holding_the_mean_length_by_hand():
    # Along the length: -4/3 (3) + 2/3 (0) + 2/3 (0) = -4 of 8/3, so that -1.5 a token is what the length is paid.
    advantages = torch.tensor([[3.0, 0, 0, 9.0], [0, 1.0, -1.0, 9.0], [0, 0, 0, torch.nan]])
    held, bonus = F.hold_mean_length(advantages, THREE, target=7 / 3)
    assert bonus == pytest.approx(1.5)
    torch.testing.assert_close(held, torch.tensor([[1.0, 0, 0, 0], [1.0, 1.0, -1.0, 0], [1.0, 0, 0, 0]]))
    # Too short by a ninth of the target. The squares of the advantages less their mean of 3/7 add up to 11 - 9/7.
    error, std_ratio = 1 / 9, ((11 - 9 / 7) / (8 / 3)) ** 0.5
    assert F.hold_mean_length(advantages, THREE, target=21 / 8)[1] == pytest.approx(1.5 + 3 * error * std_ratio)
    for target, error in ((99.0, 0.3), (1.0, -0.3)):  # bounded
        assert F.hold_mean_length(advantages, THREE, target)[1] == pytest.approx(1.5 + 3 * error * std_ratio)


def test_equal_lengths_leave_the_advantages():
    advantages = torch.tensor([[3.0, 1.0, 9.0], [0, 1.0, 9.0]])
    held, bonus = F.hold_mean_length(advantages, torch.tensor([[1, 1, 0], [1, 1, 0]]), target=5.0)
    assert bonus == 0 and held.tolist() == [[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
