"""GRPO with a reward for every token."""
