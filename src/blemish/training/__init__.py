"""The training engine: feeds a method that learns by gradient, and takes its steps."""

from blemish.training.loop import Training, train

__all__ = ["Training", "train"]
