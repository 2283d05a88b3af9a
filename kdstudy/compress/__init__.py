"""Smaller and cheaper networks made of trained ones: pruned, narrowed, computed in 8-bit integers."""

from kdstudy.compress.int8 import Int8, Int8Aware
from kdstudy.compress.pruning import Prune, Shrink
from kdstudy.compress.transform import Transform

__all__ = ["Int8", "Int8Aware", "Prune", "Shrink", "Transform"]
