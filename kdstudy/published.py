"""Numbers that others have published, each with its source and how surely it is known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdstudy.errors import KDStudyError, unknown
from kdstudy.places import shipped


def published(dataset: str, folder: Path | None = None) -> pd.DataFrame:
    """Return published results on a data set, from `data/published/` of the project.

    Args:
        dataset: "cifar10", "cifar100" or "imagenet".
        folder: where the tables lie; None takes the project's, or else those of kdstudy's own checkout.

    Returns:
        One row a number: teacher, student, method, test_accuracy and teacher_test_accuracy in percent,
        source, known ("read": seen in the source itself; "second-hand": in others' words), note, and gain:
        the points over the same student trained alone, where the same source says them.

    Raises:
        KDStudyError: if there is no table of that name.

    Example:
        >>> table = published("cifar100")
        >>> pair = table[(table.teacher == "wrn_40_2") & (table.student == "wrn_16_2")]
        >>> pair.set_index("method").gain.round(2)["kd"].item()
        1.66
    """
    folder = folder or shipped("data", "published")
    files = {file.stem: file for file in folder.glob("*.csv")}
    if not files:
        raise KDStudyError(f"no published tables at {folder}: they lie in data/published/ of a kdstudy checkout")
    if dataset not in files:
        raise unknown("published table", dataset, files)
    table = pd.read_csv(files[dataset], keep_default_na=False, na_values={"teacher_test_accuracy": [""]})
    alone = table[table["method"] == "scratch"].groupby(["source", "student"])["test_accuracy"].first()
    told = table[["source", "student"]].apply(tuple, axis=1)
    return table.assign(gain=table["test_accuracy"] - told.map(alone))
