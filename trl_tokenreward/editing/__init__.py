"""Edits that a language model makes, and what editors and annotators share."""
