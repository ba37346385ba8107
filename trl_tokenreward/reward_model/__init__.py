"""The token reward model.

- `configuration`: `TokenRewardModelConfig`;
- `modeling`: `TokenRewardModel`: the backbone with its two heads;
- `config`: `TokenRewardConfig`, the settings of the trainer;
- `trainer`: `TokenRewardTrainer`;
- `losses`: the losses on tokens;
- `metrics`: the metrics of a training run;
- `evaluation`: accuracy, AUROC and calibration on held-out pairs;
- `readout`: token and prefix scores of any supported reward model;
- `scoring`: `score_dataset`: scored texts for display;
- `export`: `export_scores`: scores as pre-annotations of annotation tools;
- `text_scores`: scores of texts and of token ids.
"""
