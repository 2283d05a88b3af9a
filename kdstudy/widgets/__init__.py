"""What can be explored in JupyterLab: stored results under controls, and trainings to watch.

An explorer and a live training show themselves in a notebook: as widgets where somebody can press their buttons, as
figures, tables and text where the notebook is executed headless.
"""

from kdstudy.widgets.along import along_front
from kdstudy.widgets.between import between
from kdstudy.widgets.browser import images
from kdstudy.widgets.combine import combine
from kdstudy.widgets.comparison import compare
from kdstudy.widgets.controls import Choice, Control, Several, Slider, Text
from kdstudy.widgets.curves import curves
from kdstudy.widgets.disagreement import disagreements
from kdstudy.widgets.explorer import Explorer
from kdstudy.widgets.gap import gap_map
from kdstudy.widgets.kinds import kinds
from kdstudy.widgets.live import Live
from kdstudy.widgets.pair import pair
from kdstudy.widgets.severities import severities
from kdstudy.widgets.shown import Shown
from kdstudy.widgets.soft import soft_labels
from kdstudy.widgets.twins import twins
from kdstudy.widgets.wrong import wrong_labels

__all__ = [
    "Choice",
    "Control",
    "Explorer",
    "Live",
    "Several",
    "Shown",
    "Slider",
    "Text",
    "along_front",
    "between",
    "combine",
    "compare",
    "curves",
    "disagreements",
    "gap_map",
    "images",
    "kinds",
    "pair",
    "severities",
    "soft_labels",
    "twins",
    "wrong_labels",
]
