"""Advantages within a group, worked by hand, and what they reduce to."""

import pytest
import torch
from torch import tensor

from trl_tokenreward.grpo.functional import group_advantages, leave_one_out_advantages, process_advantages


pytestmark = pytest.mark.any_trl

ESTIMATORS = {"process": process_advantages, "leave_one_out": leave_one_out_advantages}


def last_token(scores, mask):
    """Rewards on the last tokens, and where they stand."""
    places = torch.zeros_like(mask)
    places.scatter_(1, (mask.sum(1) - 1).unsqueeze(1), 1)
    return places * scores.unsqueeze(1), places


class TestByHand:
    def test_process(self):
        rewards, mask = tensor([[1.0, 3.0, 0.0], [4.0, 2.0, 0.0]]), tensor([[1, 1, 0], [1, 1, 0]])
        advantages = process_advantages(rewards, mask, mask, 2, "none")
        # less the mean of 2.5: -1.5, .5 and 1.5, -.5
        torch.testing.assert_close(advantages, tensor([[-1.0, 0.5, 0.0], [1.0, -0.5, 0.0]]))
        deviation = (5 / 3) ** 0.5  # (2.25 + .25 + 2.25 + .25) / 3
        scaled = process_advantages(rewards, mask, mask, 2, "group")
        torch.testing.assert_close(scaled, advantages / (deviation + 1e-4))

    def test_leave_one_out(self):
        rewards = tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0], [0.0, 5.0, 0.0]])
        mask = tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])
        # Returns: 7 6 4, 4 1, 5 5. At the third token no other is as long: the others' last ones are 1 and 5.
        expected = tensor([[7 - 4.5, 6 - 3.0, 4 - 3.0], [4 - 6.0, 1 - 5.5, 0.0], [5 - 5.5, 5 - 3.5, 0.0]])
        torch.testing.assert_close(leave_one_out_advantages(rewards, mask, mask, 3, "none"), expected)
        deviation = (7 / 3) ** 0.5  # of the returns 7, 4, 5
        scaled = leave_one_out_advantages(rewards, mask, mask, 3, "group")
        torch.testing.assert_close(scaled, expected / (deviation + 1e-4))

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_batch_scale_is_one_number(self, estimator):
        rewards, mask = torch.randn(6, 5), torch.ones(6, 5, dtype=torch.long)
        plain = group_advantages(rewards, mask, mask, 3, estimator, "none")
        scaled = group_advantages(rewards, mask, mask, 3, estimator, "batch")
        ratio = (plain / scaled).flatten()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        of = rewards if estimator == "process" else rewards.sum(1)
        torch.testing.assert_close(ratio[0], of.std() + 1e-4)


class TestReductions:
    def test_process_on_the_last_token_is_grpo(self):
        scores = tensor([1.0, 4.0, 2.0, -3.0, 0.0, 5.0])
        mask = (torch.arange(7) < tensor([7, 3, 1, 4, 4, 6]).unsqueeze(1)).long()
        rewards, places = last_token(scores, mask)
        groups = scores.view(2, 3)
        expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        advantages = process_advantages(rewards, places, mask, 3)
        torch.testing.assert_close(advantages, expected.view(6, 1) * mask)

    def test_leave_one_out_on_the_last_token_is_rloo(self):
        scores, mask = tensor([1.0, 4.0, 2.0]), torch.ones(3, 4, dtype=torch.long)
        advantages = leave_one_out_advantages(*last_token(scores, mask), mask, 3, "none")
        torch.testing.assert_close(advantages, tensor([1 - 3.0, 4 - 1.5, 2 - 2.5]).unsqueeze(1).expand(3, 4))
        # which is TRL's advantage times G / (G - 1)
        torch.testing.assert_close(advantages[:, 0], (scores - scores.mean()) * 3 / 2)

    def test_equal_completions_under_leave_one_out_get_0(self):
        rewards, mask = torch.randn(1, 5).expand(4, 5), torch.ones(4, 5, dtype=torch.long)
        assert leave_one_out_advantages(rewards, mask, mask, 4, "none").abs().max() < 1e-6

    def test_equal_completions_of_equal_rewards_get_0(self):
        rewards, mask = torch.full((4, 5), 3.0), torch.ones(4, 5, dtype=torch.long)
        assert process_advantages(rewards, mask, mask, 4).abs().max() == 0

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_a_reward_moves_no_advantage_after_it(self, estimator):
        torch.manual_seed(0)
        rewards, mask = torch.randn(3, 6), torch.ones(3, 6, dtype=torch.long)
        moved = rewards.clone()
        moved[0, 2] += 5
        moved[1, 2] -= 5  # the mean of the group stays
        before, after = (ESTIMATORS[estimator](x, mask, mask, 3, "none") for x in (rewards, moved))
        torch.testing.assert_close(before[:, 3:], after[:, 3:])
        assert ((before - after)[0, :3].abs() > 1).all()

    def test_length_alone_earns_nothing(self):
        # Every token is as good as every other; one completion is longer.
        mask = tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
        assert process_advantages(mask * 2.0, mask, mask, 2, "none").abs().max() == 0


class TestMasks:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_junk_in_masked_places_changes_nothing(self, estimator):
        mask = tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
        rewards = torch.randn(2, 4)
        junk = torch.where(mask.bool(), rewards, torch.nan)
        for scale in ("none", "group", "batch"):
            clean = ESTIMATORS[estimator](rewards, mask, mask, 2, scale)
            torch.testing.assert_close(ESTIMATORS[estimator](junk, mask, mask, 2, scale), clean)
            assert (clean[mask == 0] == 0).all()

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_a_completion_without_reward_neither_gets_nor_moves_an_advantage(self, estimator):
        torch.manual_seed(0)
        rewards, mask = torch.randn(3, 4), torch.ones(3, 4, dtype=torch.long)
        places = mask.clone()
        places[1] = 0
        advantages = ESTIMATORS[estimator](rewards, places, mask, 3)
        assert (advantages[1] == 0).all()
        alone = ESTIMATORS[estimator](rewards[[0, 2]], mask[:2], mask[:2], 2)
        torch.testing.assert_close(advantages[[0, 2]], alone)

    def test_one_with_a_reward_has_nobody_to_compare_with(self):
        places = tensor([[1, 1], [0, 0]])
        mask = torch.ones_like(places)
        assert leave_one_out_advantages(torch.randn(2, 2), places, mask, 2).abs().max() == 0

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_a_group_of_one_is_refused(self, estimator):
        with pytest.raises(ValueError, match="2 completions or more"):
            ESTIMATORS[estimator](torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3), 1)

    def test_a_broken_group_is_refused(self):
        with pytest.raises(ValueError, match="3 completions are no whole number of groups of 2"):
            process_advantages(torch.zeros(3, 3), torch.ones(3, 3), torch.ones(3, 3), 2)
