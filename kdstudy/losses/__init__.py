"""Losses as pure functions of tensors: student first, scalar out, computed in log space.

Half-precision inputs are computed in float32. No function detaches anything: who must not receive a
gradient is the caller's choice. What a single method minimises and nobody else asks for stands in that method's file.
"""

from kdstudy.losses.base import cosines, flat_rows, products, same_size, widened
from kdstudy.losses.correlation import dist, inter_class, intra_class
from kdstudy.losses.decoupled import (
    dkd,
    nkd,
    non_target_class_kd,
    non_target_cross_entropy,
    split_target,
    target_class_kd,
    weighted_target,
)
from kdstudy.losses.features import attention_transfer, feature_mse, flow, flow_difference, fsp
from kdstudy.losses.relations import rkd_angle, rkd_distance, similarity
from kdstudy.losses.response import cross_entropy, kd, logit_mse

__all__ = [
    "attention_transfer",
    "cosines",
    "cross_entropy",
    "dist",
    "dkd",
    "feature_mse",
    "flat_rows",
    "flow",
    "flow_difference",
    "fsp",
    "inter_class",
    "intra_class",
    "kd",
    "logit_mse",
    "nkd",
    "non_target_class_kd",
    "non_target_cross_entropy",
    "products",
    "rkd_angle",
    "rkd_distance",
    "same_size",
    "similarity",
    "split_target",
    "target_class_kd",
    "weighted_target",
    "widened",
]
