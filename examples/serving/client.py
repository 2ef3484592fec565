"""Sends pictures to a service and prints what it says of each.

    python client.py http://127.0.0.1:8000 part FOLDER [--source NAME] [--token TOKEN]

By the standard library alone. A service that is busy says when to come again; that is done. The
token may stand in the environment instead, as BLEMISH_TOKEN, where other users do not see it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def pictures(place: Path) -> Iterator[Path]:
    """A file, or the files of a folder in order."""
    if place.is_dir():
        yield from (path for path in sorted(place.rglob("*")) if path.is_file())
    else:
        yield place


def scored(url: str, model: str, path: Path, source: str, token: str) -> dict[str, Any]:
    """What the service says of a picture: its row, or {"error": …}."""
    query = urllib.parse.urlencode({"name": path.name, "source": source})
    headers = {"Content-Type": "application/octet-stream"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(
        f"{url}/v1/models/{urllib.parse.quote(model)}/predict?{query}",
        data=path.read_bytes(),
        headers=headers,
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                found: dict[str, Any] = json.load(answer)["predictions"][0]
                return found
        except urllib.error.HTTPError as error:
            if error.code == 503:
                time.sleep(float(error.headers.get("Retry-After", "1")))
                continue
            told: dict[str, Any] = json.load(error)
            if error.code in (413, 422):  # of this picture
                return told
            raise SystemExit(f"{error.code}: {told['error']['message']}") from error
        except OSError as error:
            raise SystemExit(f"{url}: does not answer ({error})") from error


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--source", default="")
    parser.add_argument("--token", default=os.environ.get("BLEMISH_TOKEN", ""))
    options = parser.parse_args(arguments)
    for path in pictures(options.pictures):
        row = scored(options.url, options.model, path, options.source, options.token)
        if "error" in row:
            print(f"{path}: {row['error']['message']}")
        else:
            verdict = {0: "good", 1: "DEFECT", None: "no threshold"}[row["label"]]
            print(f"{path}: {row['score']:.4g} {verdict}, {len(row['regions'] or ())} regions")


if __name__ == "__main__":
    main()
