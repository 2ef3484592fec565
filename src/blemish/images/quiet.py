"""Keeps the decoding libraries quiet: blemish says itself what is wrong with a file."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings

_LOGGERS = ("PIL.TiffImagePlugin", "pydicom", "tifffile")


class _Quiet:
    """Holds back what Pillow, pydicom and OpenCV say about a file; blemish says what is wrong with it itself.

    The switches belong to the process, so all decoding threads share them: the first one in sets them, the last one
    out restores them. `warnings.catch_warnings` would put back the whole list of filters, and with it those that
    another thread had set only for a while; this takes out the one filter that it put in.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        import cv2

        with self._lock:
            if self._users == 0:
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
                self._filter = warnings.filters[0]
                self._level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
                self._loggers = [(log, log.disabled) for log in map(logging.getLogger, _LOGGERS)]
                for log, _ in self._loggers:
                    log.disabled = True
            self._users += 1

    def __exit__(self, *_: object) -> None:
        import cv2

        with self._lock:
            self._users -= 1
            if self._users == 0:
                with contextlib.suppress(
                    ValueError
                ):  # another thread may have replaced the list meanwhile
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
                cv2.utils.logging.setLogLevel(self._level)
                for log, disabled in self._loggers:
                    log.disabled = disabled


quiet = _Quiet()
