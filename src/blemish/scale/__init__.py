"""Scoring, and learning, of more than one machine holds: over Ray, and in any engine that hands out
batches of rows."""

from blemish.lazy import handing_out

__all__ = ["Scorer", "predict_many"]

_HOMES = {"Scorer": "blemish.scale.scorer", "predict_many": "blemish.scale.predict:predict"}
__getattr__, __dir__ = handing_out(__name__, _HOMES)
