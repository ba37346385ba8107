"""Minimal edits by a language model, and the parts that annotation shares.

- `edit_dataset`: `edit_dataset`: edits every row and can be resumed;
- `editors`: the language models that edit: behind an endpoint or in this process;
- `tasks`: the answers to edit;
- `checks`: the checks that an edit must pass;
- `log`: the append-only log;
- `output`: the data set of edits and its card.
"""
