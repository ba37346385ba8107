"""Proximal policy optimization with dense rewards."""
