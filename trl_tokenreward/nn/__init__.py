"""Parts of models that do not depend on rewards.

- `lm_head`: losses and log-probabilities without full logits;
- `masked`: means and other reductions over masks;
- `finite`: checks that scores, losses and weights are finite numbers;
- `modules`: PEFT wrappers, evaluation mode, copies of models;
- `adapters`: adapters of PEFT: which can be read, and the model without its own;
- `precision`: weights that are trained in less than float32;
- `sharding`: FSDP2 and DeepSpeed ZeRO;
- `unpadding`: right-packed and padded batches, rows grouped by length.
"""
