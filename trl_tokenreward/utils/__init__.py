"""Helpers that know nothing of edits or rewards."""
