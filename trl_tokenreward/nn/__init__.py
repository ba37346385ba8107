"""Parts of models that do not depend on rewards.

- `lm_head`: losses and log-probabilities without full logits;
- `masked`: means and other reductions over masks;
- `modules`: PEFT wrappers, evaluation mode, copies of models;
- `precision`: weights that are trained in less than float32;
- `sharding`: FSDP2 and DeepSpeed ZeRO;
- `unpadding`: right-packed and padded batches, rows grouped by length.
"""
