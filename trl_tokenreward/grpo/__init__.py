"""GRPO with rewards of single tokens.

- `trainer`: TRL's trainer, with advantages of tokens in place of its own
- `config`: its settings
- `prompts`: the prompts, checked before the run
- `sources`: reward models and functions, as TRL calls them
- `functional`: the advantages within a group
"""
