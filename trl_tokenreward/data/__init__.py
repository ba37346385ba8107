"""Preference rows of every format, prepared for training on tokens."""
