import math

import pytest
import torch

from trl_tokenreward.reward_model.losses import (
    edit_classification_loss,
    edit_ranking_loss,
    sequence_ranking_loss,
    unchanged_classification_loss,
    unchanged_score_penalty,
)
from trl_tokenreward.reward_model.metrics import edit_pair_wins, pairwise_wins, token_auroc


pytestmark = pytest.mark.any_trl


JUNK = (math.nan, math.inf, -math.inf, 1e30)
LOG2 = 0.6931471805599453


def tensors(*rows):
    return [torch.tensor(row, dtype=torch.double) for row in rows]


class TestSequenceRanking:
    def test_golden(self):
        # -log sigmoid(2) = .126928, -log sigmoid(-1) = 1.313262
        chosen, rejected = tensors([3.0, 0.0], [1.0, 1.0])
        assert sequence_ranking_loss(chosen, rejected).item() == pytest.approx(0.7200950, abs=1e-6)

    def test_margin_is_subtracted_from_the_difference(self):
        # differences 2 - 1 = 1 and -1 - 0 = -1: .313262 and 1.313262
        chosen, rejected, margin = tensors([3.0, 0.0], [1.0, 1.0], [1.0, 0.0])
        assert sequence_ranking_loss(chosen, rejected, margin).item() == pytest.approx(0.8132617, abs=1e-6)

    def test_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"`margin` has shape \(1,\), but `chosen_scores` has shape \(2,\)"):
            sequence_ranking_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1))
        with pytest.raises(ValueError, match=r"`rejected_scores` has shape \(3,\), but `chosen_scores`"):
            sequence_ranking_loss(torch.zeros(2), torch.zeros(3))


# Row 0: a replacement (edited in 2 and 4, edited out -1), row 1: a deletion (edited out 3), row 2: no edit.
CHOSEN = [[2.0, 9.0, 4.0], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]]
CHOSEN_MASK = [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
REJECTED = [[-1.0, 9.0], [9.0, 3.0], [9.0, 9.0]]
REJECTED_MASK = [[1, 0], [0, 1], [0, 0]]


def example(requires_grad=False):
    chosen, rejected = (torch.tensor(x, dtype=torch.double, requires_grad=requires_grad) for x in (CHOSEN, REJECTED))
    return chosen, rejected, torch.tensor(CHOSEN_MASK), torch.tensor(REJECTED_MASK)


class TestEditRanking:
    def test_golden_mean(self):
        # row 0: 3 - (-1) = 4 -> .018150; row 1: 0 - 3 = -3 -> 3.048587; row 2 takes no part
        assert edit_ranking_loss(*example()).item() == pytest.approx((0.0181499 + 3.0485874) / 2, abs=1e-6)

    def test_golden_sum(self):
        # row 0: 6 - (-1) = 7 -> .000911466
        assert edit_ranking_loss(*example(), "sum").item() == pytest.approx((0.000911466 + 3.0485874) / 2, abs=1e-6)

    def test_masks_may_be_boolean(self):
        chosen, rejected, *masks = example()
        loss = edit_ranking_loss(chosen, rejected, *(mask.bool() for mask in masks))
        assert loss == edit_ranking_loss(*example())

    def test_unknown_aggregation(self):
        with pytest.raises(ValueError, match="'max'"):
            edit_ranking_loss(*example(), "max")

    def test_shapes_are_named(self):
        chosen, rejected, chosen_mask, rejected_mask = example()
        with pytest.raises(ValueError, match=r"`chosen_edit_mask` has shape \(3, 2\), but .* \(3, 3\)"):
            edit_ranking_loss(chosen, rejected, rejected_mask, rejected_mask)
        with pytest.raises(ValueError, match=r"\(3, 3\) and `rejected_scores` \(2, 2\)"):
            edit_ranking_loss(chosen, rejected[:2], chosen_mask, rejected_mask[:2])


class TestEditClassification:
    def test_golden(self):
        # edited in 2, 4 -> .126928, .018150; edited out -1 -> .313262, 3 -> 3.048587; the mean of the four tokens
        expected = (0.1269280 + 0.0181499 + 0.3132617 + 3.0485874) / 4
        assert edit_classification_loss(*example()).item() == pytest.approx(expected, abs=1e-6)

    def test_undecided_scores_cost_log_2(self):
        chosen, rejected, *masks = example()
        assert edit_classification_loss(chosen * 0, rejected * 0, *masks).item() == pytest.approx(LOG2, abs=1e-12)

    def test_gradient_pushes_edited_in_up_and_edited_out_down(self):
        chosen, rejected, *masks = example(requires_grad=True)
        edit_classification_loss(chosen, rejected, *masks).backward()
        assert (chosen.grad[masks[0].bool()] < 0).all() and (rejected.grad[masks[1].bool()] > 0).all()
        assert (chosen.grad[~masks[0].bool()] == 0).all() and (rejected.grad[~masks[1].bool()] == 0).all()

    def test_shapes_are_named(self):
        chosen, rejected, chosen_mask, _ = example()
        with pytest.raises(ValueError, match=r"`rejected_edit_mask` has shape \(3, 3\), but .* \(3, 2\)"):
            edit_classification_loss(chosen, rejected, chosen_mask, chosen_mask)


class TestUnchangedPenalty:
    def test_golden(self):
        scores, mask = torch.tensor([[1.0, -3.0, 7.0]]), torch.tensor([[1, 1, 0]])
        assert unchanged_score_penalty(scores, mask).item() == 5.0  # (1 + 9) / 2

    def test_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"`unchanged_mask` has shape \(1, 2\), but `scores` has shape \(1, 3\)"):
            unchanged_score_penalty(torch.zeros(1, 3), torch.zeros(1, 2))


class TestUnchangedClassification:
    def test_golden(self):
        scores, mask = torch.tensor([[0.0, math.log(3), 7.0]]), torch.tensor([[1, 1, 0]])
        expected = (LOG2 + math.log(4 / 3)) / 2  # sigmoid(log 3) is 3/4
        assert unchanged_classification_loss(scores, mask).item() == pytest.approx(expected)

    def test_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"`unchanged_mask` has shape \(1, 2\), but `scores` has shape \(1, 3\)"):
            unchanged_classification_loss(torch.zeros(1, 3), torch.zeros(1, 2))


LOSSES = {
    "ranking-mean": edit_ranking_loss,
    "ranking-sum": lambda *args: edit_ranking_loss(*args, "sum"),
    "classification": edit_classification_loss,
    "unchanged-right": lambda chosen, rejected, chosen_mask, rejected_mask: (
        unchanged_classification_loss(chosen, chosen_mask) + unchanged_classification_loss(rejected, rejected_mask)
    ),
    "unchanged": lambda chosen, rejected, chosen_mask, rejected_mask: (
        unchanged_score_penalty(chosen, chosen_mask) + unchanged_score_penalty(rejected, rejected_mask)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
class TestEveryTokenLoss:
    def test_without_edited_tokens_it_is_zero_with_a_gradient_of_zero(self, name):
        chosen, rejected, *masks = example(requires_grad=True)
        loss = LOSSES[name](chosen, rejected, *(torch.zeros_like(mask) for mask in masks))
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(chosen.grad, torch.zeros_like(chosen))
        assert torch.equal(rejected.grad, torch.zeros_like(rejected))

    @pytest.mark.parametrize("junk", JUNK)
    def test_junk_in_masked_places_is_inert(self, name, junk):
        results = []
        for with_junk in (False, True):
            chosen, rejected, *masks = example()
            if with_junk:
                chosen, rejected = (
                    s.masked_fill(~m.bool(), junk) for s, m in zip((chosen, rejected), masks, strict=True)
                )
            chosen.requires_grad_()
            rejected.requires_grad_()
            loss = LOSSES[name](chosen, rejected, *masks)
            loss.backward()
            results.append((loss.detach(), chosen.grad, rejected.grad))
        for clean, dirty in zip(*results, strict=True):
            assert torch.equal(clean, dirty)

    def test_gradcheck(self, name):
        chosen, rejected, *masks = example(requires_grad=True)
        assert torch.autograd.gradcheck(lambda c, r: LOSSES[name](c, r, *masks), (chosen, rejected))


class TestAccuracies:
    def test_wins_count_ties_half(self):
        above, below = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0, 0.0])
        assert pairwise_wins(above, below) == 4.5  # 1 beats 0 and ties with 1; 3 beats all
        assert pairwise_wins(below, above) == 1.5

    def test_auroc_golden(self):
        scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
        assert token_auroc(scores, labels) == 0.75

    def test_auroc_bounds_and_ties(self):
        labels = torch.tensor([1, 0, 1, 0])
        assert token_auroc(torch.tensor([5.0, 1.0, 4.0, 2.0]), labels) == 1.0
        assert token_auroc(torch.tensor([1.0, 5.0, 2.0, 4.0]), labels) == 0.0
        assert token_auroc(torch.zeros(4), labels) == 0.5

    @pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
    def test_auroc_of_one_class_is_nan(self, labels):
        assert math.isnan(token_auroc(torch.tensor([1.0, 2.0]), torch.tensor(labels)))

    def test_auroc_of_nan_is_nan(self):
        assert math.isnan(token_auroc(torch.tensor([1.0, math.nan]), torch.tensor([1, 0])))

    def test_auroc_equals_the_comparison_of_all_pairs(self):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randint(0, 20, (400,), generator=generator).float()
        labels = torch.randint(0, 2, (400,), generator=generator)
        positives, negatives = scores[labels == 1][:, None], scores[labels == 0][None, :]
        expected = (positives > negatives).double().mean() + (positives == negatives).double().mean() / 2
        assert token_auroc(scores, labels) == pytest.approx(expected.item(), abs=1e-12)

    def test_auroc_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"`labels` has shape \(2,\), but `scores` has shape \(3,\)"):
            token_auroc(torch.zeros(3), torch.zeros(2))

    def test_pairs_are_compared_within_their_row(self):
        chosen, chosen_mask = torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([[1, 1], [0, 1]])
        rejected, rejected_mask = torch.tensor([[0.5, 7.0, 1.0], [8.0, 9.5, 9.0]]), torch.tensor([[1, 0, 1], [1, 1, 1]])
        # row 0: 1 beats .5 and ties with 1, 0 loses twice; row 1: 9 beats 8, loses to 9.5, ties with 9
        assert edit_pair_wins(chosen, rejected, chosen_mask, rejected_mask).tolist() == [[1.5, 4.0], [1.5, 3.0]]

    def test_rows_without_a_pair_count_nothing(self):
        scores, mask, empty = torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 2)
        assert edit_pair_wins(scores, scores, mask, empty).tolist() == [[0.0, 0.0]]
