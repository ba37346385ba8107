"""The mathematics of fine-grained PPO: pure functions of tensors.

Shapes: B completions, T completion tokens. Masks are 1 for real tokens. They are applied at reductions, so values in
masked places change nothing.

The index contract: entry `[:, t]` of every (B, T) tensor belongs to completion token t. Its log-probability and the
value V(s_t) are read off the models' output one column earlier, before the token; its score is read off the reward
model's output at the token's own column, after it.
"""

import torch
from torch import Tensor, nn

from ..nn.masked import check_shapes, masked_mean, masked_sum, zero_masked


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of two vectors of shape (N,); 0 where either does not vary."""
    check_shapes("y", y, "x", x)
    x, y = x.float() - x.float().mean(), y.float() - y.float().mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=1e-30), torch.zeros_like(scale))


def repeated_ngrams(ids: Tensor, mask: Tensor, n: int) -> Tensor:
    """The share of each row's n-grams that stand in it earlier too ("seq-rep-n" of Welleck et al., 2020).

    Args:
        ids (`Tensor`):
            Token ids. Shape (B, T).
        mask (`Tensor`):
            Shape (B, T): ones, then zeros.
        n (`int`):
            Tokens of an n-gram.

    Returns:
        `Tensor`: Shape (B,), between 0 and 1; 0 for a row with fewer than n tokens.
    """
    check_shapes("mask", mask, "ids", ids)
    counts = (mask.sum(1) - n + 1).clamp(min=0)
    if not bool((counts > 0).any()):
        return torch.zeros(len(ids), device=ids.device)
    grams = ids.unfold(1, n, 1)
    # One number for each n-gram of the batch. Places without an n-gram get unique negative numbers.
    _, codes = grams.reshape(-1, n).unique(dim=0, return_inverse=True)
    places = torch.arange(grams.shape[1], device=ids.device)
    codes = torch.where(places < counts.unsqueeze(1), codes.view(grams.shape[:2]), -1 - places)
    codes = codes.sort(1).values
    repeated = (codes[:, 1:] == codes[:, :-1]).sum(1)
    return repeated / counts.clamp(min=1)


# --- from scores to rewards ----------------------------------------------------------------------------------------


def potential_differences(prefix_scores: Tensor, completion_mask: Tensor) -> Tensor:
    r"""Token scores that telescope to the sequence score: potential-based shaping of the terminal reward.

    With phi_t the sequence head's score of the prefix that ends with token t,

        s_0 = phi_0,   s_t = phi_t - phi_{t-1},   so that   sum_t s_t = phi_{last}.

    (Ng, Harada and Russell, 1999: with gamma = 1 such shaping leaves the optimal policy as it is.)

    Args:
        prefix_scores (`Tensor`):
            Shape (B, T), read at each token's own column.
        completion_mask (`Tensor`):
            Shape (B, T).

    Returns:
        `Tensor`: Shape (B, T), 0 where the mask is 0.
    """
    check_shapes("completion_mask", completion_mask, "prefix_scores", prefix_scores)
    previous = torch.cat([torch.zeros_like(prefix_scores[:, :1]), prefix_scores[:, :-1]], dim=1)
    return zero_masked(prefix_scores - previous, completion_mask)


def place_at_last(scores: Tensor, completion_mask: Tensor) -> Tensor:
    """Put one score for each sequence, shape (B,), on its last real token: (B, T), 0 elsewhere."""
    placed = torch.zeros(completion_mask.shape, dtype=scores.dtype, device=scores.device)
    lengths = completion_mask.sum(1)
    if (lengths == 0).any():
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(f"Completion {row} has no real token, so no token can carry its score.")
    return placed.scatter(1, (lengths - 1).long().unsqueeze(1), scores.unsqueeze(1))


def redistribute(
    token_scores: Tensor, completion_mask: Tensor, density: str, sentence_ends: Tensor | None = None
) -> Tensor:
    """Make token scores sparser at equal total return.

    Args:
        token_scores (`Tensor`):
            Shape (B, T).
        completion_mask (`Tensor`):
            Shape (B, T).
        density (`str`):
            `"token"` leaves each score where it is, `"sentence"` moves the sum of each sentence's scores to its last
            token, `"sequence"` moves the whole sum to the last real token, as classic PPO has it.
        sentence_ends (`Tensor`, *optional*):
            Shape (B, T), 1 where a token ends a sentence; needed by `"sentence"`. The last real token always ends one.

    Returns:
        `Tensor`: Shape (B, T); each row has the sum that it had, and is 0 where the mask is 0.
    """
    check_shapes("completion_mask", completion_mask, "token_scores", token_scores)
    scores = zero_masked(token_scores, completion_mask)
    if density == "token":
        return scores
    if density == "sequence":
        return place_at_last(scores.sum(1), completion_mask)
    if density != "sentence":
        raise ValueError(f"`density` must be 'token', 'sentence' or 'sequence', got {density!r}.")
    if sentence_ends is None:
        raise ValueError("`sentence_ends` is needed by the density 'sentence'.")
    check_shapes("sentence_ends", sentence_ends, "token_scores", token_scores)
    ends = place_at_last(torch.ones_like(scores[:, 0]), completion_mask).bool()
    ends |= sentence_ends.bool() & completion_mask.bool()
    # The sum of a sentence is the running total at its end less the running total at the end before it; where that end
    # is, a running maximum over the ends' positions says.
    running = scores.cumsum(1)
    positions = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    last_end = torch.where(ends, positions, -1).cummax(1).values
    previous_end = torch.cat([torch.full_like(last_end[:, :1], -1), last_end[:, :-1]], dim=1)
    before = torch.where(previous_end >= 0, running.gather(1, previous_end.clamp(min=0)), 0.0)
    return torch.where(ends, running - before, 0.0)


def joint_log_odds(scores: Tensor, owners: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The log-odds that all of several tokens are left as they are, each independently of the others:
    `logit(prod_i sigmoid(s_i))`, of one token its own score.

    Args:
        scores (`Tensor`):
            Shape (B, R): log-odds.
        owners (`Tensor`):
            Shape (B, R), integers below `length`: which place gets each of them; -1 for padding.
        length (`int`):
            T, how many places there are.

    Returns:
        `tuple[Tensor, Tensor]`: Shapes (B, T): the log-odds, 0 at places that get none, and how many each gets.
    """
    real = owners >= 0
    places = owners.clamp(min=0)
    nothing = scores.new_zeros(len(scores), length)

    def collect(values: Tensor) -> Tensor:
        return nothing.scatter_add(1, places, zero_masked(values, real))

    counts = collect(torch.ones_like(scores))
    # Below 0, for the log-odds of a certainty are infinite.
    log_probs = collect(nn.functional.logsigmoid(scores)).clamp(max=-1e-6)
    joint = log_probs - torch.log(-torch.expm1(log_probs))
    return torch.where(counts > 1, joint, collect(scores)), counts


def shape_scores(
    scores: Tensor,
    completion_mask: Tensor,
    *,
    signal: str,
    log_sigmoid: bool = False,
    scale: float = 1.0,
    center: bool = False,
    clip: float | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Take the log-sigmoid of raw scores, scale, centre and clip them, in this order.

    `signal="token_scores"` treats each token's score by itself: `s <- clip(scale * s - mean)`, with the mean over all
    real tokens of the batch. A token score is the log-odds that an annotator leaves the token unchanged. Its
    log-sigmoid is the log-probability, and the sum over a completion is the log-probability that no token is changed:
    bad tokens cost as much as before, and very good ones no longer pay for them. `signal="sequence_score"` shapes each
    row's sum and puts the difference on its last token, so potential differences stay as they are.

    Args:
        scores (`Tensor`):
            Shape (B, T): the whole batch's, of all processes.
        completion_mask (`Tensor`):
            Shape (B, T).
        counts (`Tensor`, *optional*):
            Shape (B, T): how many tokens of the reward model each score is of, where it has another tokenizer (see
            [`joint_log_odds`]). A score of none is no score: its log-sigmoid is 0. The mean is that of a reward model's
            token, and is taken off as often. Defaults to 1 for each real token.

    Returns:
        `Tensor`: Shape (B, T).
    """
    if counts is None:
        counts = completion_mask
    check_shapes("counts", counts, "scores", scores)
    counts = counts * completion_mask
    if log_sigmoid:
        if signal == "sequence_score":
            raise ValueError("`log_sigmoid` has no effect on a sequence score, which is not the log-odds of a token.")
        scores = zero_masked(nn.functional.logsigmoid(scores), counts)
    scores = scale * scores
    if signal == "token_scores":
        if center:
            scores = scores - counts * (masked_sum(scores, completion_mask) / counts.sum().clamp(min=1))
        if clip is not None:
            scores = scores.clamp(-clip, clip)
        return scores
    totals = (scores * completion_mask).sum(1)
    shaped = totals - totals.mean() if center else totals
    if clip is not None:
        shaped = shaped.clamp(-clip, clip)
    return scores + place_at_last(shaped - totals, completion_mask)


def kl_per_token(per_token_logps: Tensor, ref_per_token_logps: Tensor, estimator: str) -> Tensor:
    """Estimates of KL(policy || reference) at each token of samples from the policy (Schulman, 2020), shape (B, T).

    `"k1"` is log(p/q): unbiased, of either sign. `"k3"` is (q/p - 1) - log(q/p): unbiased, never negative.
    """
    check_shapes("ref_per_token_logps", ref_per_token_logps, "per_token_logps", per_token_logps)
    log_ratio = ref_per_token_logps - per_token_logps
    if estimator == "k1":
        return -log_ratio
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"`estimator` must be 'k1' or 'k3', got {estimator!r}.")


def token_level_rewards(token_level_scores: Tensor, kl: Tensor, completion_mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = s_t - kl_coef * KL_t on real tokens, 0 elsewhere. All of shape (B, T). (Ziegler et al., 2019)"""
    check_shapes("token_level_scores", token_level_scores, "kl", kl)
    check_shapes("completion_mask", completion_mask, "kl", kl)
    return zero_masked(token_level_scores - kl_coef * kl, completion_mask)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, least: float) -> float:
    """The coefficient of the KL penalty for the next update: proportional control in log space, bounded below.

        beta <- max(least, beta * (1 + clip(kl / target - 1, -0.2, 0.2)))

    Ziegler et al. (2019, section 2.2) take steps of a tenth of that, for runs of thousands of updates, without a lower
    bound. Here runs are short: ±20 % per update reacts within ten updates, in which a policy can run away. The bound
    keeps the coefficient from falling while the policy is still close to its reference.

    Args:
        kl_coef (`float`):
            Of this update.
        kl (`float`):
            Mean KL of this update's completions to the reference, in nats.
        target (`float`):
            Where the KL is to stay, in nats.
        least (`float`):
            The result is never below.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return max(least, kl_coef * (1 + error))


# --- advantages ----------------------------------------------------------------------------------------------------


def gae(
    rewards: Tensor,
    values: Tensor,
    completion_mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, equations 11 and 16) on rows of unequal length.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t),   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V(s_t)

    Args:
        rewards (`Tensor`):
            Shape (B, T).
        values (`Tensor`):
            V(s_t), the value before token t. Shape (B, T).
        completion_mask (`Tensor`):
            Shape (B, T): ones, then zeros.
        gamma (`float`):
            Discount.
        lam (`float`):
            GAE's lambda. 1 gives Monte Carlo returns, 0 one-step temporal differences.
        bootstrap_values (`Tensor`, *optional*):
            Shape (B,): the value of the state after the last real token; 0, the default, for a text that has ended.

    Returns:
        `tuple[Tensor, Tensor]`: Advantages and returns of shape (B, T), 0 where the mask is 0.
    """
    check_shapes("values", values, "rewards", rewards)
    check_shapes("completion_mask", completion_mask, "rewards", rewards)
    rewards, values = zero_masked(rewards, completion_mask), zero_masked(values, completion_mask)
    batch_size, length = rewards.shape
    if bootstrap_values is None:
        bootstrap_values = torch.zeros_like(rewards[:, 0])
    elif bootstrap_values.shape != (batch_size,):
        raise ValueError(f"`bootstrap_values` has shape {tuple(bootstrap_values.shape)}, expected ({batch_size},).")
    mask = completion_mask.bool()
    next_advantage = torch.zeros_like(bootstrap_values)
    next_value = bootstrap_values
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(length)):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        # Before its last real token is reached from the right, a row keeps the initial pair.
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    return advantages, zero_masked(advantages + values, completion_mask)


def length_advantages(completion_mask: Tensor) -> Tensor:
    """The advantage of each token for the length of its completion.

    With m_t the mean number of tokens, this one and all that follow, of the batch's completions that have a token t,

        L_t = 1 + m_{t+1} - m_t   where another token follows,   L_t = 1 - m_t   on a completion's last one:

    the one-step advantage of a reward of 1 per token, with a value function of the position alone. A token that
    continues has a small positive advantage, one that ends has a large negative one, and over the completions that have
    a token t they add up to 0. Where all completions end together, as at the response length, it is 0.

    Args:
        completion_mask (`Tensor`):
            Shape (B, T): ones, then zeros.

    Returns:
        `Tensor`: Shape (B, T), float32, 0 where the mask is 0.
    """
    mask = completion_mask.float()
    reached = mask.sum(0)
    # The tokens from t on, of all completions that have a token t.
    remaining = reached.flip(0).cumsum(0).flip(0) / reached.clamp(min=1)
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    after = torch.cat([remaining[1:], torch.zeros_like(remaining[:1])])
    return mask * (1 + following * after - remaining)


def mean_length(completion_mask: Tensor) -> float:
    """Mean number of tokens of the completions whose mask this is, of shape (B, T)."""
    return float(completion_mask.sum(1).float().mean())


def hold_mean_length(advantages: Tensor, completion_mask: Tensor, target: float) -> tuple[Tensor, float]:
    """Advantages that keep the mean length of completions, or bring it back to a target.

    Summed rewards depend on the length: short completions have fewer bad tokens and a smaller KL penalty, long ones
    collect more good tokens. So the advantages A_t lose their component along the advantages of length, L_t of
    [`length_advantages`], and get one that grows with the distance from the target,

        A_t <- A_t + b L_t,   b = 3 e std(A) / std(L) - sum_t A_t L_t / sum_t L_t^2,
        e = clip((target - mean length) / target, -0.3, 0.3).

    It is as if each token were paid a bonus of b. (The first term is a controller's, the second makes its work small:
    to the first order, an update whose advantages are orthogonal to those of the length does not change it.)

    Args:
        advantages (`Tensor`):
            Shape (B, T).
        completion_mask (`Tensor`):
            Shape (B, T): ones, then zeros.
        target (`float`):
            The mean length to keep, in tokens.

    Returns:
        `tuple[Tensor, float]`: The advantages, of shape (B, T) and 0 where the mask is 0, and b, in reward for a token;
        0 where all completions have the same length.
    """
    check_shapes("completion_mask", completion_mask, "advantages", advantages)
    advantages, along = zero_masked(advantages, completion_mask), length_advantages(completion_mask)
    square = along.square().sum()
    if square == 0:
        return advantages, 0.0
    error = min(max((target - mean_length(completion_mask)) / target, -0.3), 0.3)
    centred = zero_masked(advantages - masked_mean(advantages, completion_mask), completion_mask)
    bonus = 3 * error * (centred.square().sum() / square).sqrt() - (advantages * along).sum() / square
    return advantages + bonus * along, float(bonus)


# --- losses --------------------------------------------------------------------------------------------------------


def policy_losses(
    per_token_logps: Tensor, old_per_token_logps: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's clipped surrogate (Schulman et al., 2017, equation 7), token by token and not yet reduced.

        ratio_t = exp(logp_t - old_logp_t),   loss_t = max(-A_t ratio_t, -A_t clip(ratio_t, 1 - c, 1 + c))

    All of one shape: in training (N,), the completion tokens of a group of rows.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: The losses, whether the clipped side was the larger, and the ratios.
    """
    check_shapes("old_per_token_logps", old_per_token_logps, "per_token_logps", per_token_logps)
    check_shapes("advantages", advantages, "per_token_logps", per_token_logps)
    ratio = torch.exp(per_token_logps - old_per_token_logps)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped, ratio


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped value loss, token by token and not yet reduced.

        loss_t = max((V_t - R_t)^2, (clip(V_t, V_old - c, V_old + c) - R_t)^2) / 2

    All of one shape, as for [`policy_losses`].

    Returns:
        `tuple[Tensor, Tensor]`: The losses and whether the clipped side was the larger.
    """
    check_shapes("old_values", old_values, "values", values)
    check_shapes("returns", returns, "values", values)
    unclipped = (values - returns).square()
    clipped = (values.clamp(old_values - cliprange_value, old_values + cliprange_value) - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped
