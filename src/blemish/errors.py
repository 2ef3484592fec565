"""Every error that blemish raises on purpose.

    BlemishError
    ├── InputError            a picture, folder or table that cannot be used
    │   ├── ImageError        one picture cannot be decoded
    │   └── DataError         a folder, manifest or split cannot be used
    ├── ConfigError           an unknown name or key, or a value out of range
    ├── WeightsError          backbone weights are missing, out of reach or do not fit
    ├── ArtifactError         an artifact is damaged, foreign or of a newer format
    ├── NotFittedError        a detector is used before it was fitted
    ├── CalibrationError      a false-alarm rate that the calibration pictures cannot support
    ├── NonFiniteError        a pixel, weight or score is NaN or infinite
    ├── CollapseError         a pre-training has come to tell nothing apart
    ├── OutputError           a result cannot be written
    ├── EngineError           an engine cannot run an exported graph
    ├── ExportError           a graph does not say what its detector says, and is not written
    ├── ClusterError          a cluster is out of reach, or lost what it computed
    ├── StoreError            what was predicted and reviewed cannot be written down or read
    └── MissingExtraError     an optional dependency is not installed

A message says what was wrong, with which file, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BlemishError(Exception):
    """Base of every error raised on purpose; its text is fit to be shown to a user as it is."""


class InputError(BlemishError):
    """A picture, folder or table that cannot be used."""


class ImageError(InputError):
    """One picture cannot be decoded.

    Attributes:
        source: path (or description) of the picture.
        reason: what is wrong with it, without the path.
    """

    def __init__(self, source: object, reason: str) -> None:
        self.source = str(source)
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class DataError(InputError):
    """A folder, manifest or split cannot be used."""


class ConfigError(BlemishError):
    """An unknown name or key, or a value out of range."""


class WeightsError(BlemishError):
    """Backbone weights are missing, out of reach or do not fit the architecture."""


class ArtifactError(BlemishError):
    """An artifact is damaged, foreign or of a newer format."""


class NotFittedError(BlemishError):
    """A detector is used before it was fitted."""


class CalibrationError(BlemishError):
    """The false-alarm rate asked for needs more calibration pictures than there are."""


class NonFiniteError(BlemishError):
    """A pixel, weight or score is NaN or infinite."""


class CollapseError(BlemishError):
    """A pre-training has come to tell nothing apart: every picture looks the same to it; or a
    student does not see what its teacher sees."""


class EngineError(BlemishError):
    """An engine cannot run a graph: it lacks an operator or a device, or failed while it ran."""


class ExportError(BlemishError):
    """An exported graph does not say what its detector says; nothing was written."""


class ClusterError(BlemishError):
    """A cluster is out of reach, has no room, or lost what it computed."""


class StoreError(BlemishError):
    """What was predicted and reviewed cannot be written down or read.

    Its text names no folder of the machine, save where a store is opened.

    Attributes:
        retryable: whether the same may succeed later, unchanged: the database is out of reach, held
            by another process or full. Nothing of what failed was written.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        self.retryable = retryable
        super().__init__(message)


class OutputError(BlemishError):
    """A result cannot be written."""


class MissingExtraError(BlemishError):
    """An optional dependency is not installed.

    Example:
        >>> print(MissingExtraError("pydicom", extra="medical", purpose="read DICOM files"))
        pydicom is needed to read DICOM files: pip install 'blemish[medical]'
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed to {purpose}: pip install 'blemish[{extra}]'")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """A ConfigError for an unknown name that suggests the nearest known one.

    Example:
        >>> str(unknown_name("method", "pachcore", ["patchcore", "knn"]))
        "unknown method 'pachcore'; did you mean 'patchcore'? Known: knn, patchcore"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ConfigError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
