"""Helpers that do not depend on edits or rewards.

- `chat_endpoint`: a client of OpenAI-compatible endpoints;
- `jsonl`: JSON Lines files;
- `loading`: loading and saving of data sets and tokenizers;
- `statistics`: win rates and bootstrap intervals;
- `text`: texts in errors and views;
- `validation`: checks of arguments.
"""
