"""Exercises that check themselves: what they are, and those of the primer."""

from kdstudy.exercises.exercise import Exercise, Number, Verdict
from kdstudy.exercises.primer import AGREEMENT, DISTILLATION_LOSS, GRADIENT, SOFTEN, SOFTER

__all__ = ["AGREEMENT", "DISTILLATION_LOSS", "GRADIENT", "SOFTEN", "SOFTER", "Exercise", "Number", "Verdict"]
