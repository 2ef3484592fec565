"""Pre-trained feature extractors: `build("focus_vits14")` gives tokens, [CLS] attention and
pyramids over timm.

Nothing is fetched at import. `build` resolves weights (hub, local file or pip package) in one
place, `blemish.backbones.weights`; `restore` rebuilds a backbone without any weights, for an
artifact to fill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blemish.lazy import handing_out

if TYPE_CHECKING:
    from blemish.backbones.base import Backbone, Features
    from blemish.backbones.building import SPECS, build, hollow, restore, spec_of
    from blemish.backbones.cnn import CnnBackbone
    from blemish.backbones.pdn import PdnBackbone
    from blemish.backbones.spec import BackboneSpec, WeightsInfo
    from blemish.backbones.vit import VitBackbone

__all__ = ["SPECS", "Backbone", "BackboneSpec", "CnnBackbone", "Features", "PdnBackbone"]
__all__ += ["VitBackbone", "WeightsInfo", "build", "hollow", "restore", "spec_of"]

if not TYPE_CHECKING:
    _HOMES = {
        "Backbone": "blemish.backbones.base",
        "Features": "blemish.backbones.base",
        "SPECS": "blemish.backbones.building",
        "build": "blemish.backbones.building",
        "hollow": "blemish.backbones.building",
        "restore": "blemish.backbones.building",
        "spec_of": "blemish.backbones.building",
        "CnnBackbone": "blemish.backbones.cnn",
        "PdnBackbone": "blemish.backbones.pdn",
        "BackboneSpec": "blemish.backbones.spec",
        "WeightsInfo": "blemish.backbones.spec",
        "VitBackbone": "blemish.backbones.vit",
    }
    __getattr__, __dir__ = handing_out(__name__, _HOMES)
