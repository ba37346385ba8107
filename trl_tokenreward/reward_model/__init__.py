"""The token reward model.

- `configuration`: `TokenRewardModelConfig`;
- `modeling`: `TokenRewardModel`: the backbone with its two heads;
- `heads`: the heads, which compute in float32;
- `saved_adapter`: the saved adapter of a token reward model, read as a model;
- `config`: `TokenRewardConfig`, the settings of the trainer;
- `trainer`: `TokenRewardTrainer`;
- `given_model`: the model that it trains, made of what it is given;
- `labels`: what a batch says of its tokens;
- `losses`: the losses on tokens;
- `metrics`: the metrics of a training run;
- `evaluation`: accuracy, AUROC and calibration on held-out pairs;
- `character_scores`: F1 of marked characters;
- `step_evaluation`, `step_metrics`: the model as a process reward model, on held-out solutions in steps;
- `implicit`: `ImplicitReward`: rewards of a language model beside its reference;
- `readout`: token and prefix scores of any supported reward model;
- `scoring`: `score_dataset`: scored texts for display;
- `export`: `export_scores`: scores as pre-annotations of annotation tools;
- `text_scores`: scores of texts and of token ids.
"""
