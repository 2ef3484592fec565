"""The methods that learn from good pictures alone, by name; `lda` can teach them defects."""

from __future__ import annotations

from blemish.methods.agpnet import AGPNet
from blemish.methods.base import Method
from blemish.methods.dinomaly import Dinomaly
from blemish.methods.guided import Guided
from blemish.methods.memory import Knn, PatchCore
from blemish.methods.padim import Padim
from blemish.methods.vitad import ViTAD

UNSUPERVISED: dict[str, type[Method]] = {
    "patchcore": PatchCore,
    "knn": Knn,
    "padim": Padim,
    "agpnet": AGPNet,
    "dinomaly": Dinomaly,
    "vitad": ViTAD,
    "guided": Guided,
}
