"""Rounds of editing: a policy writes, its answers are edited, the reward model and the policy train on.

- `run`: `run_rounds` and `run_round`;
- `settings`: `RoundConfig`, the settings of a round;
- `stages`: what a round does, one function for each stage;
- `folder`: the folder of a round, and the record of the stages that are done.
"""
