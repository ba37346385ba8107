"""Proximal policy optimization with dense rewards.

- `trainer`: the trainer, which reads as the steps of PPO
- `config`, `reward_settings`: its settings, and those of rewards, which GRPO shares
- `prompts`, `sampling`, `decoding`, `vllm`, `forward`, `inference`: prompts, completions, log-probabilities and values
- `completion_scorer`, `reward_functions`: raw scores of completions, from reward models and functions
- `rewards`: several rewards as one
- `collector`: one update's prompts, completions, rewards, KL penalty and advantages, as a `rollout`
- `functional`: the equations: rewards, KL, advantages, losses
- `batches`, `schedule`: mini-batches, and the sizes of a run
- `models`, `one_base`, `value_head`: policy, reference, value and reward model, adapters, and what they share
- `adaptation`: the KL coefficient and the target length from update to update
- `metrics`, `evaluation`, `completion_log`, `trackers`, `reward_hacking`: what is logged and measured
- `checkpointing`, `callbacks`: what a checkpoint contains, and when it is written
"""
