"""Pictures that come one after another: of a video, a camera, a folder that grows.

`frames` gives them lazily, each with a name and a time. What a camera, a video file or a stream
gives is opened here with OpenCV, whose colours are BGR, and turned to RGB; of what somebody else
has opened the order of the colours has to be said.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import cv2
import numpy as np

from blemish.data.arrivals import Arrivals
from blemish.data.containers import missing_bytes
from blemish.data.folder import is_file, is_folder
from blemish.errors import ConfigError, DataError
from blemish.images import sniff
from blemish.images.limits import quiet
from blemish.text import duration
from blemish.types import Failure, Frame

Colours: TypeAlias = Literal["bgr", "rgb"]
Stop: TypeAlias = Callable[[], bool]

PATIENCE = 300.0  # seconds for which a camera that is gone is waited for
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries to open it
_SLICE = 0.1  # seconds after which whoever waits asks whether to stop
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SECRET = re.compile(r"(?i)\b([\w-]*(?:pass|pwd|token|key|secret|auth|user|login)[\w-]*)=[^&#\s]*")


class Capture(Protocol):
    """What gives pictures one by one, as `cv2.VideoCapture` does."""

    def read(self) -> tuple[bool, Any]: ...


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _never() -> bool:
    return False


def frames(
    source: Any,
    *,
    colours: Colours | None = None,
    every: float = 0.0,
    once: bool = False,
    interval: float = 1.0,
    settle: float = 1.0,
    patience: float = PATIENCE,
    note: Callable[[str], None] = _warn,
    stop: Stop = _never,
) -> Generator[Frame | Failure]:
    """The pictures of a stream as they come, for `Detector.predict_many`.

    Nothing is taken before it is asked for. With `predict_many` a `batch_size` of 1 gives the
    prediction of each picture at once; a larger one waits until a batch is full.

    Args:
        source: a folder, whose pictures come first by name and then as they are written; a video
            file; the number or the URL of a camera; an opened `cv2.VideoCapture`, or what reads as
            it does; or a function that opens one, which is called again when it is lost.
        colours: of a capture of yours, or of your function, the order in which it gives them:
            "bgr", as OpenCV does, or "rgb". Never guessed; what is opened here is BGR.
        every: seconds, >= 0, from one frame to the next at least, of a video in its own time; those
            in between are left out. Not of a folder.
        once: end when a folder has nothing more, rather than wait for new pictures.
        interval: seconds between two looks at a folder, > 0.
        settle: seconds for which a file in a folder must not have grown before it is taken, >= 0.
        patience: seconds, >= 0, for which a camera that gives nothing any more is opened again and
            again, with growing pauses.
        note: called with a sentence when a camera is lost or back, or a folder cannot be read.
            Default: a warning (`warnings.warn`).
        stop: asked between pictures and while waiting; the pictures end when it says True.
    Yields: a `Frame`; a `Failure` for a frame in which a video ends, and for one that is no
        picture. What came before is good.
    Raises: DataError at once where the source cannot be opened, and later where a camera stays
        away longer than `patience`; ConfigError for a setting out of range.

    Example:
        >>> class Camera:
        ...     left = 2
        ...
        ...     def read(self):
        ...         self.left -= 1
        ...         return self.left >= 0, np.full((2, 2, 3), (255, 0, 0), np.uint8)
        >>> for frame in frames(Camera(), colours="bgr"):
        ...     print(frame.source[0, 0])  # blue, as the camera said
        [  0   0 255]
        [  0   0 255]
    """
    check_seconds(every=every, settle=settle, patience=patience, interval=interval)
    if colours not in (None, "bgr", "rgb"):
        raise ConfigError(f"colours={colours!r}: bgr or rgb is needed")
    if isinstance(source, (str, Path)) and is_folder(Path(source)):
        if every or colours:
            raise ConfigError(f"{source}: is a folder; `every` and `colours` are of cameras")
        arrivals = Arrivals(Path(source), settle=settle, note=note)
        return _of_folder(arrivals, once=once, interval=interval, stop=stop)
    stream = opened(source, colours)
    return frames_of(stream, every=every, patience=patience, note=note, stop=stop)


def check_seconds(**seconds: float) -> None:
    """Raises: ConfigError for what is no length of time, and for an `interval` of 0."""
    for name, value in seconds.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} {value}: a number of seconds >= 0 is needed")
    if seconds.get("interval") == 0:
        raise ConfigError("interval 0: a number of seconds > 0 is needed")


def rest(seconds: float, stop: Stop) -> None:
    """Wait, unless told to stop."""
    end = time.monotonic() + seconds
    while not stop() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE))


# --- Opening --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Stream:
    """An opened camera or video.

    Attributes:
        name: as it is shown: without passwords.
        capture: what is open now.
        colours: the order in which it gives them.
        reopen: opens it once more; None where only somebody else could.
        file: of a video in a file.
        lasting: whether it has no end, as a camera of OpenCV's: no picture is then a fault.
    """

    name: str
    capture: Any
    colours: Colours
    reopen: Callable[[], Any] | None = None
    file: Path | None = None
    lasting: bool = True

    @property
    def live(self) -> bool:
        """Whether it is a camera, whose pictures are of now; else a video, which has a length."""
        return self.file is None and not self.number(cv2.CAP_PROP_FRAME_COUNT)

    def read(self) -> np.ndarray | None:
        """The next picture as it comes; None where there is none."""
        with quiet:
            came, values = self.capture.read()
        return values if came and values is not None else None

    def close(self) -> None:
        _release(self.capture)

    def number(self, which: int) -> float:
        """A property of OpenCV's; 0 where there is none."""
        get = getattr(self.capture, "get", None)
        value = float(get(which)) if callable(get) else 0.0
        return value if np.isfinite(value) and value > 0 else 0.0


def opened(source: Any, colours: Colours | None = None) -> Stream:
    """A camera or a video, opened.

    Raises: DataError where there is none, or it cannot be opened; ConfigError for what is no
        source, or where `colours` is missing or cannot be.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        return _named(f"camera {source}", source, colours)
    if isinstance(source, (str, Path)):
        text = str(source)
        if is_url(text):
            return _named(shown(text), text, colours)
        path = Path(source)
        if is_device(path):
            return _named(text, text, colours)
        if not is_file(path):
            raise DataError(f"{source}: no such file or folder, and no URL of a camera")
        return _video(path, colours)
    name = getattr(source, "name", None)
    name = name if isinstance(name, str) else "camera"
    if not hasattr(source, "read") and not callable(source):
        raise ConfigError(
            f"frames of {type(source).__name__}: a folder, a video file, a camera's number or URL, "
            "an opened capture, or a function that opens one is needed"
        )
    if colours is None:
        raise ConfigError(
            'frames: colours="bgr" or colours="rgb" is needed for a capture of your own; OpenCV\'s '
            "give BGR"
        )
    if hasattr(source, "read"):
        lasting = isinstance(source, cv2.VideoCapture)
        if lasting and not source.isOpened():
            raise DataError(f"{name}: the capture is not open; OpenCV could not open its source")
        return Stream(name=name, capture=source, colours=colours, lasting=lasting)
    capture = _tried(source)
    if capture is None:
        raise DataError(f"{name}: cannot be opened by the function given")
    return Stream(name=name, capture=capture, colours=colours, reopen=source)


def is_url(text: str) -> bool:
    """Whether a text names a stream, as rtsp://…, rather than a file."""
    return bool(_URL.match(text))


def is_device(path: Path) -> bool:
    """Whether a path is a camera, as /dev/video0 is."""
    try:
        return path.is_char_device()
    except OSError:
        return False


def shown(url: str) -> str:
    """A URL without what nobody else should read.

    Example:
        >>> shown("rtsp://admin:1234@10.0.0.7/live?channel=1&token=x")
        'rtsp://10.0.0.7/live?channel=1&token=…'
    """
    without = re.sub(r"^([^:]+://)[^/?#]*@", r"\1", url)
    return _SECRET.sub(r"\1=…", without)


def _named(name: str, source: int | str, colours: Colours | None) -> Stream:
    """A camera or a URL."""
    _refuse(name, colours)

    def reopen() -> Any:
        return cv2.VideoCapture(source)

    capture = _tried(reopen)
    if capture is None:
        raise DataError(
            f"{name}: cannot be opened; see whether it is plugged in, can be reached, and is not "
            "in use by another program"
        )
    return Stream(name=name, capture=capture, colours="bgr", reopen=reopen)


def _video(path: Path, colours: Colours | None) -> Stream:
    _refuse(str(path), colours)
    try:
        missing = missing_bytes(path)
        empty = path.stat().st_size == 0
        with path.open("rb") as file:
            is_picture = sniff(file.read(132)) is not None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if is_picture:  # OpenCV would go on with those beside it that have a number in their names, too
        raise DataError(f"{path}: is a picture; a video, or the folder of the pictures, is needed")
    capture = _tried(lambda: cv2.VideoCapture(str(path)))
    if capture is not None:
        return Stream(name=str(path), capture=capture, colours="bgr", file=path)
    if empty:
        raise DataError(f"{path}: is empty (0 bytes)")
    if missing:
        raise DataError(
            f"{path}: cannot be opened, as the file is not whole: {missing:,} bytes are missing at "
            "its end; copy it again, or let its recording end"
        )
    raise DataError(f"{path}: cannot be opened; it is no video that OpenCV can read")


def _refuse(name: str, colours: Colours | None) -> None:
    if colours == "rgb":
        raise ConfigError(f"{name}: OpenCV opens it and gives BGR; leave colours out")


def _tried(reopen: Callable[[], Any]) -> Any:
    """What the function has opened; None where that is not open, or could not be."""
    try:
        with quiet:
            capture = reopen()
            is_open = getattr(capture, "isOpened", None)
            if capture is not None and (is_open is None or is_open()):
                return capture
            _release(capture)
    except (OSError, RuntimeError, cv2.error):
        return None
    return None


def _release(capture: Any) -> None:
    if callable(release := getattr(capture, "release", None)):
        release()


# --- Frame by frame -------------------------------------------------------------------------------


def in_rgb(values: Any, colours: Colours) -> np.ndarray:
    """A copy of a picture with its colours in the order RGB; grey stays as it is.

    A copy, for a capture may write its next picture into the same memory.
    """
    array = np.asarray(values)
    if colours == "bgr" and array.ndim == 3 and array.shape[2] in (3, 4):
        order = [2, 1, 0, 3][: array.shape[2]]
        return np.ascontiguousarray(array[..., order])
    return np.array(array)


def frames_of(
    stream: Stream, *, every: float, patience: float, note: Callable[[str], None], stop: Stop
) -> Generator[Frame | Failure]:
    """The frames of what `opened` has opened; see `frames`."""
    if stream.live:
        return _of_camera(stream, every=every, patience=patience, note=note, stop=stop)
    return _of_video(stream, every=every, stop=stop)


def _of_folder(
    arrivals: Arrivals, *, once: bool, interval: float, stop: Stop
) -> Generator[Frame | Failure]:
    while not stop():
        began = time.monotonic()
        for frame in arrivals.look():
            if stop():
                return
            arrivals.finish(frame)
            yield frame
        if once and not arrivals.waiting:
            return
        rest(pause_after(time.monotonic() - began, interval), stop)


def pause_after(took: float, interval: float) -> float:
    """Seconds to the next look at a folder: of a large one at most a fifth is spent looking."""
    return max(interval, 4 * min(took, 60.0))


def _of_video(stream: Stream, *, every: float, stop: Stop) -> Generator[Frame | Failure]:
    """One frame is held back: if the file is not whole, it is the one that was cut."""
    due, index = 0.0, 0
    held: Frame | None = None
    rate = stream.number(cv2.CAP_PROP_FPS)
    try:
        for values in _read(stream):
            if stop():
                return
            if held is not None:
                yield held
                held = None
            since = stream.number(cv2.CAP_PROP_POS_MSEC) / 1000 or (index / rate if rate else 0.0)
            name = f"{stream.name}#{index:06d}"
            index += 1
            if since + 1e-6 < due:
                continue
            due = since + every if every else 0.0
            held = Frame(source=in_rgb(values, stream.colours), name=name, time=since)
        yield from _ending(stream, held, index)
    finally:
        if stream.file is not None:
            stream.close()


def _read(stream: Stream) -> Iterator[np.ndarray]:
    while (values := stream.read()) is not None:
        yield values


def _ending(stream: Stream, held: Frame | None, index: int) -> Iterator[Frame | Failure]:
    """The last frame of a video, or why there is none."""
    promised = int(stream.number(cv2.CAP_PROP_FRAME_COUNT))
    missing = 0
    if stream.file is not None:
        with suppress(OSError):
            missing = missing_bytes(stream.file)
    if index == 0:
        lacking = f"{missing:,} bytes are missing at its end" if missing else "it may be damaged"
        raise DataError(f"{stream.name}: no frame of it could be read; {lacking}")
    last = f"{stream.name}#{index - 1:06d}"
    if missing:
        of = f" of {promised}" if promised > index else ""
        yield Failure(
            source=last,
            reason=f"the video is cut off in this frame, its {_nth(index)}{of}, or right after it: "
            f"{missing:,} bytes are missing at the end of the file",
        )
        return
    if held is not None:
        yield held
    if index + max(2, promised // 20) < promised:  # of some formats it is an estimate
        yield Failure(
            source=f"{stream.name}#{index:06d}",
            reason=f"the video ends before this frame: {index} of about {promised} could be read; "
            "the file is damaged or not whole",
        )


def _nth(number: int) -> str:
    """
    Example:
        >>> _nth(1), _nth(12), _nth(23)
        ('1st', '12th', '23rd')
    """
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else ends.get(number % 10, 'th')}"


def _of_camera(
    stream: Stream, *, every: float, patience: float, note: Callable[[str], None], stop: Stop
) -> Generator[Frame | Failure]:
    due = 0.0
    try:
        while not stop():
            values = stream.read()
            if values is None and not stream.lasting:
                return
            if values is None:
                values = _found_again(stream, patience, note, stop)
            if values is None:
                return
            now = time.time()
            if now < due:
                continue
            due = now + every if every else 0.0
            moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")
            name = f"{stream.name} {moment.replace('+00:00', 'Z')}"
            yield Frame(source=in_rgb(values, stream.colours), name=name, time=now)
    finally:
        if stream.reopen is not None:
            stream.close()


def _found_again(
    stream: Stream, patience: float, note: Callable[[str], None], stop: Stop
) -> np.ndarray | None:
    """The first picture of a camera after it was gone; None where it was to stop.

    Raises: DataError where it does not come back.
    """
    if stream.reopen is None:
        raise DataError(
            f"{stream.name}: gives no picture any more, and a capture that somebody else has "
            "opened cannot be opened again here; give `frames` the camera's number, its URL, or a "
            "function that opens it"
        )
    lost = time.monotonic()
    note(f"{stream.name}: gives no picture any more; it is opened again")
    pause, tries = _FIRST_PAUSE, 0
    while not stop():
        stream.close()
        rest(min(pause, max(0.0, patience - (time.monotonic() - lost))), stop)
        pause, tries = min(2 * pause, _LONGEST_PAUSE), tries + 1
        capture = _tried(stream.reopen)
        if capture is not None:
            stream.capture = capture
            if (values := stream.read()) is not None:
                gone = duration(time.monotonic() - lost)
                note(f"{stream.name}: back after {gone}")
                return values
        if time.monotonic() - lost >= patience:
            often = f"{tries} tries" if tries > 1 else "one try"
            raise DataError(
                f"{stream.name}: gone, and not back after {often} in {duration(patience)}; see "
                "whether it is plugged in and can be reached, and start again"
            )
    return None
