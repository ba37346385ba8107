"""Minimal edits between two texts.

- `alignment`: alignment by words or tokens, edit masks and the edit ratio;
- `diff`: an edit as pieces for display.
"""
