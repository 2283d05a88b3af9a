"""Faults, and what the store has to be like after each; `tests/torture.py` injects them by the hundred."""
