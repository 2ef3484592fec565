"""The pages of docs/results/: each answers one question, in its title and its first sentence.

A module has one `Question` or two that lie near each other; `QUESTIONS` has them in the order in
which the index lists them. Answers are computed: where new rows change them, the pages change.
"""

from __future__ import annotations

from questions.cluster import CLUSTER
from questions.coverage import COVERAGE
from questions.defects import DEFECTS
from questions.engines import SPEED
from questions.equal import EQUAL
from questions.methods import FEW, METHODS
from questions.monitoring import MONITORING
from questions.peers import PEERS
from questions.pretraining import PRETRAINING
from questions.published import PAPERS
from questions.question import Question
from questions.regions import LARGE, REGIONS
from questions.resources import RESOURCES
from questions.saving import SAVING
from questions.selection import SELECTION
from questions.service import SERVICE
from questions.settings import SETTINGS
from questions.shift import SHIFT

__all__ = ["QUESTIONS", "Question"]

QUESTIONS = (
    *(METHODS, EQUAL, FEW, DEFECTS, PRETRAINING, SHIFT, REGIONS, LARGE, SELECTION),
    *(SPEED, SAVING, RESOURCES, SERVICE, MONITORING, CLUSTER),
    *(SETTINGS, PAPERS, PEERS, COVERAGE),
)
