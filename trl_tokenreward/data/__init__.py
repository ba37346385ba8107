"""Preference rows: formats, edit masks and batches.

- `formats`: the formats of rows, and the texts that are tokenized, for the reward model and for PPO;
- `tokens`: these texts as token ids: who may add special tokens, and which characters a token stands for;
- `importers`: data sets of other shapes; a new import format goes here;
- `annotation_tools`: what people marked and edited in Label Studio, Argilla and doccano, and pre-annotations for them;
- `foreign_rows`: rows that others wrote, with errors that name them;
- `preprocessing`: rows as token ids with edit masks; `max_edit_ratio`;
- `spans`: spans of characters that a row marks as wrong;
- `steps`: solutions in steps, with a label for each;
- `vocabulary`: ids and lengths that a model cannot read;
- `dropped`: counts of the rows that are dropped;
- `collator`: padded batches.
"""
