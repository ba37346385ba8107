"""Win rates of a policy.

- `win_rate`: `evaluate_win_rate` and the callback for a training run;
- `sampler`: answers of a model to held-out prompts;
- `judges`: judges that compare two answers: reward models, functions, endpoints.
"""
