"""Scoring, and learning, of more than one machine holds: over Ray, and in any engine that hands out
batches of rows."""

from blemish.lazy import handing_out

__all__ = ["Scorer"]

__getattr__, __dir__ = handing_out(__name__, {"Scorer": "blemish.scale.scorer"})
