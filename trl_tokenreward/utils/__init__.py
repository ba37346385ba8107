"""Helpers that do not depend on edits or rewards.

- `chat_endpoint`: a client of OpenAI-compatible endpoints;
- `checkpoints`: checkpoints that were cut short, told from whole ones;
- `code`: a hash of the package's own code, for caches;
- `config_file`: settings of trainers in YAML files;
- `files`: files and folders that outlive a crash;
- `jsonl`: JSON Lines files;
- `loading`: loading and saving of data sets and tokenizers;
- `messages`: messages of chats as texts;
- `model_card`: the model cards that TRL writes, with examples that run;
- `paper`: the paper, as model cards cite it;
- `statistics`: win rates and bootstrap intervals;
- `text`: texts in errors and views;
- `threads`: threads that end with the run that they work for;
- `validation`: checks of arguments.
"""
