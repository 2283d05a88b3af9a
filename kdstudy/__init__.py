"""kdstudy: an interactive, notebook-based toolkit for studying knowledge distillation.

A notebook describes its trainings as `Run` values and asks `study` for them as one table; what is in the
store is read, what is missing is trained.
"""

from kdstudy import (
    adversarial,
    between,
    claims,
    compress,
    costs,
    data,
    ensembles,
    factorial,
    front,
    landscape,
    losses,
    maps,
    memorisation,
    methods,
    metrics,
    nets,
    plots,
    report,
    representations,
    runs,
    schedules,
    widgets,
)
from kdstudy.claims import Claim, Verdicts
from kdstudy.data import DATASETS, Data, Views
from kdstudy.errors import KDStudyError
from kdstudy.method import METHODS, Hard, Match, Method, Nets, Relate, Scaled, Soft, Step, Sum
from kdstudy.nets import NETWORKS, Staged, Tapped
from kdstudy.networks import Net, Pretrained
from kdstudy.published import published
from kdstudy.recipe import Recipe
from kdstudy.report import conclude
from kdstudy.runs import Run
from kdstudy.store import Result, Store
from kdstudy.study import settings, study
from kdstudy.train import train

__all__ = [
    "DATASETS",
    "METHODS",
    "NETWORKS",
    "Claim",
    "Data",
    "Hard",
    "KDStudyError",
    "Match",
    "Method",
    "Net",
    "Nets",
    "Pretrained",
    "Recipe",
    "Relate",
    "Result",
    "Run",
    "Scaled",
    "Soft",
    "Staged",
    "Step",
    "Store",
    "Sum",
    "Tapped",
    "Verdicts",
    "Views",
    "adversarial",
    "between",
    "claims",
    "compress",
    "conclude",
    "costs",
    "data",
    "ensembles",
    "factorial",
    "front",
    "landscape",
    "losses",
    "maps",
    "memorisation",
    "methods",
    "metrics",
    "nets",
    "plots",
    "published",
    "report",
    "representations",
    "runs",
    "schedules",
    "settings",
    "study",
    "train",
    "widgets",
]
