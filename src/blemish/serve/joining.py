"""How the version that a job made joins the others, so that it does or does not, whenever the
service is killed.

What the job came to, and the row of its version, are written down with the job before its file gets
its name (`join`). Who finds a job that a killed service left (`settle`) looks for that file: if it
is there, with the digest that was written down, the version has joined, and the rest is done again;
else it never will, and what was half done is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from blemish.detector.predict import Detector
from blemish.errors import BlemishError
from blemish.serve import files
from blemish.serve.files import ModelFile
from blemish.serve.models import Registry
from blemish.serve.refining import Item
from blemish.serve.refusals import Refusal
from blemish.store import Job, OtherScore, Store, VersionRow

_ENDED = "its service ended; start it anew"
_ATTEMPTS = 5  # at a name that nobody else takes meanwhile


def made_of(id: int, base: str, learn: Sequence[Item], result: Mapping[str, Any]) -> dict[str, Any]:
    """What a job made, JSON-ready: its `result`, with a `row`: of the version, as far as it is
    known."""
    return {
        **result,
        "job": id,
        "row": {
            "base": base,
            "made": datetime.now(UTC).isoformat(),
            "learned_from": {
                "job": id,
                "how": result["how"],
                "good": result["learned"]["good"],
                "defects": result["learned"]["defects"],
                "pictures": [one.digest for one in learn],
            },
            "figures": {key: one for key, one in result["held"].items() if key != "rows"},
        },
    }


async def join(
    store: Store, models: Registry, name: str, draft: Path, made: dict[str, Any]
) -> None:
    """Have a version join the others, and write down that its job is done. `made` has its
    `version` then.

    Raises: Refusal for a file that cannot be used; StoreError.
    """
    id = int(made["job"])

    async def joining(file: ModelFile, detector: Detector) -> None:
        threshold = detector.threshold
        made["version"] = file.version
        made["row"] |= {
            "sha256": file.digest,
            "method": detector.record.method,
            "threshold": None if threshold is None else threshold.value,
            "rate": None if threshold is None else threshold.rate,
        }
        note = partial(store.update_job, id, message="joins the versions", result=made)
        await models.in_thread(note)

    parts = [draft, draft.with_suffix(".bin")] if draft.suffix == ".xml" else [draft]
    for attempt in range(_ATTEMPTS):
        # What the store speaks of is no name for another, even where its file was deleted.
        rows = await models.in_thread(store.versions, name)
        known = [one.version for one in (*models.versions(name), *rows)]
        try:
            await models.add(name, next_version(known), parts, joining)
            break
        except Refusal as refusal:  # another service was quicker
            if refusal.status != 409 or attempt == _ATTEMPTS - 1:
                raise
            await models.look_again()
    await models.in_thread(_write_down, store, name, made)


def settle(store: Store, models: Registry, job: Job) -> bool:
    """Write down what became of a job whose service is gone, and delete what is half done.

    Returns: whether this told of it; False where another did. Raises: StoreError.
    """
    assert job.id is not None
    made = dict(job.result)
    if made.get("row", {}).get("sha256") and _has_joined(models, job.model, made):
        _write_down(store, job.model, made)
        return True
    if job.state == "failed":
        return False
    failed = {"state": "failed", "message": _ENDED, "service": job.service}
    told: bool = store.update_job(job.id, **failed)
    return told


def next_version(versions: Sequence[str]) -> str:
    """The name of a new version: the number after the largest.

    Example:
        >>> next_version(["1", "2", "0a3f55c1"]), next_version(["first"])
        ('3', '1')
    """
    numbers = [int(one) for one in versions if one.isdecimal() and len(one) < 6]
    return str(max(numbers, default=0) + 1)


def _has_joined(models: Registry, name: str, made: Mapping[str, Any]) -> bool:
    """Whether the file of a version is where it was to be; its weights alone are deleted."""
    version, digest = str(made["version"]), made["row"]["sha256"]
    try:
        folder = models.folder_of(name)
        for suffix in files.SUFFIXES:
            path = folder / f"{version}{suffix}"
            if path.is_file():
                found = ModelFile(name=name, version=version, path=path)
                return bool(files.digest_of(found) == digest)
        (folder / f"{version}.bin").unlink(missing_ok=True)
    except (BlemishError, OSError):
        pass
    return False


def _write_down(store: Store, name: str, made: Mapping[str, Any]) -> None:
    """The row of a version, what it says of pictures, and that its job is done. As often as one
    likes."""
    values = {**made["row"], "made": datetime.fromisoformat(made["row"]["made"])}
    version = str(made["version"])
    store.add_version(VersionRow(model=name, version=version, **values))
    store.add_scores(
        OtherScore(picture=row["picture"], model=name, version=version, **row["after"])
        for row in made["held"]["rows"]
    )
    result = {key: one for key, one in made.items() if key not in ("row", "job")}
    store.update_job(int(made["job"]), state="done", progress=1.0, message="done", result=result)
