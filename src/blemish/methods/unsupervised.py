"""The methods that learn from good pictures alone, by name; `lda` can teach them defects."""

from __future__ import annotations

from blemish.methods.agpnet import AGPNet
from blemish.methods.base import Method
from blemish.methods.dinomaly import Dinomaly
from blemish.methods.draem import Draem
from blemish.methods.efficientad import EfficientAD
from blemish.methods.guided import Guided
from blemish.methods.memory import Knn, PatchCore
from blemish.methods.padim import Padim
from blemish.methods.rd4ad import RD4AD
from blemish.methods.simplenet import SimpleNet
from blemish.methods.spade import Spade
from blemish.methods.uniad import UniAD
from blemish.methods.vitad import ViTAD

UNSUPERVISED: dict[str, type[Method]] = {
    "patchcore": PatchCore,
    "knn": Knn,
    "padim": Padim,
    "spade": Spade,
    "agpnet": AGPNet,
    "simplenet": SimpleNet,
    "rd4ad": RD4AD,
    "dinomaly": Dinomaly,
    "vitad": ViTAD,
    "draem": Draem,
    "uniad": UniAD,
    "efficientad": EfficientAD,
    "guided": Guided,
}
