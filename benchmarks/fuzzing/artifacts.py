"""Detectors of every method, and artifacts that no `blemish fit` has written, with a right digest.

The digest tells damage. It is no signature: who writes a file can compute it, so that all that a
file says has to be checked by itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from fuzzing.pictures import scene

Random = np.random.Generator
State = dict[str, Tensor]
Manifest = dict[str, Any]
NAN, INF = float("nan"), float("inf")

SIDE = 32
TINY: Mapping[str, Any] = {
    "backbone": "test_vit",
    "weights": "random",
    "image_size": SIDE,
    "layers": (2, 4),
    "device": "cpu",
    "precision": "fp32",
}
# `zoom`: guided scores pictures larger than it learns from, unless told otherwise.
BRIEF: Mapping[str, Any] = {
    **{"epochs": 1, "min_steps": 2, "train_batch_size": 4},
    **{"teacher_steps": 12, "teacher_batch_size": 4},
    **{"width": 32, "heads": 4, "depth": 1, "zoom": 1.0, "levels": 1},
}

HOSTILE: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2.5, -0.5, 10**9, 10**30, 1e308, -1e308, NAN, INF),
    *("", "x", "0", "hf-hub:a/b", "../../etc", "x" * 10**6, "\ud800", "\x1b[31m\r\n"),
    *([], [None], [0], [1, 1], [NAN, NAN], [-1, -1, -1], ["x"], [10**9] * 3, [[1]], {}, {"a": 1}),
)

# What is no value of a field, whatever else is right: to be refused, never to score.
IMPOSSIBLE: Mapping[str, Sequence[Any]] = {
    "format": (0, True, 1.5, "1", -1, None, 99),
    "method": (5, None, "nope", ["knn"]),
    "backbone.spec.timm_name": (
        *(
            "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k",
            "hf_hub:a/b",
            "local-dir:/tmp",
            "file:/etc/passwd",
        ),
        *("../x", "vit_giant_patch14_dinov2", "eva02_enormous_patch14_clip_224", "", 7),
    ),
    "backbone.spec.kind": ("rnn", 3, None),
    "backbone.spec.blocks": ([4, 2], [2, 2], [0, 4], [2, 99], [4], [], [2.5], "24", 2, None),
    "backbone.spec.std": ([-0.5, -0.5, -0.5], [0, 0, 0], [NAN] * 3, [0.5]),
    "backbone.weights.sha256": (5, None, [1]),
    "preprocessing.height": (0, -1, 10**9, "32", 2.5, None, [32]),
    "preprocessing.width": (0, -32, 10**9, NAN, True),
    "preprocessing.mean": ([0.5], [], [NAN] * 3, [0.5] * 4, "0.5", None),
    "preprocessing.std": ([-0.5] * 3, [0.0] * 3, [0.5], [INF] * 3, []),
    "preprocessing.window": ([1], [1, 0], [0, INF], "0,1", [0, 1, 2], {"lo": 0}),
    "config.layers": ([], [2, 2], [0], [99], [-1], "2", [2.5]),
    "config.image_size": ([], [0], [-32, 32], [32, 32, 32], ["a"]),
    "config.backbone": (5, None, []),
    "config.attentions": (10**9, -1),
    "config.top_fraction": (-1, 2, NAN, "all"),
    "config.coarse": (-1, 10**9, "128", 2.5, None, [128]),
    "config.close_share": (0.0, -0.1, 2, NAN, "all"),
    "config.second": (5, None, "", "test_vit", ["test_resnet"]),
    "config.second_share": (0.0, 1.0, -0.1, NAN, "all"),
    "config.second_layers": ([], [2, 2], [0], [99], "2"),
    "second.spec.timm_name": ("hf-hub:a/b", "../x", "", 7),
    "second.weights.sha256": (5, None, [1]),
    "threshold.value": (NAN, INF, "0", [0], True),
    "threshold.n": (-5, 1.5, "many", None),
    "threshold.rate": (-1, 2, NAN, "5 %"),
    "map_scale": ([NAN, 1], [1], [], [1, 0], [INF, INF], None, "0,1"),
    "categories": (5, [1], "ab", [None]),
    "thresholds": (5, [], "x", {"a": 1}),
    "data.fitted": (5, None, [1], "x"),
    "foreground": (5, "x", [], {}, {"abstains": 1}, {"direction": [1.0]}, {"direction": [NAN]}),
}


def forge(tensors: Mapping[str, Tensor], manifest: Any, *, table: Any = None) -> bytes:
    """An artifact of these, with the digest that belongs to them.

    `table`: the header's table of tensors in place of the right one.
    """
    content = safetensors.torch.save({name: each.contiguous() for name, each in tensors.items()})
    length = int.from_bytes(content[:8], "little")
    own, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    own = own if table is None else table
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    digest.update(json.dumps(own, sort_keys=True).encode())
    digest.update(data)
    whole = {**own, "__metadata__": {"manifest": text, "digest": digest.hexdigest()}}
    header = json.dumps(whole).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def parts(count: int, *, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Pictures of good parts, uint8 H W 3."""
    return [scene(np.random.default_rng([seed, index]), 48, 48) for index in range(count)]


def settings_of(method: str) -> dict[str, Any]:
    """Arguments of `blemish.fit` with which this method fits in a moment."""
    import dataclasses

    from blemish.methods import METHODS

    names = {each.name for each in dataclasses.fields(METHODS[method].Config)}
    brief = {name: value for name, value in BRIEF.items() if name in names}
    return {
        **TINY,
        **brief,
        **({"min_steps": 2, "learning_rate": 3e-4} if method in {"atacnet", "dra", "ahl"} else {}),
    }


def write_detectors(folder: Path, pictures: int = 24) -> dict[str, Path]:
    """An artifact of every method, of several categories, of two encoders, taught by defects.

    Computes: in a fork, where this process is to fork later.
    """
    import blemish
    from blemish.methods import METHODS

    torch.set_num_threads(1)
    good, bad = parts(pictures), parts(3, seed=9)
    made = {}
    for method in METHODS:
        more: dict[str, Any] = {"anomalies": bad, "anomaly_count": 2} if method == "lda" else {}
        more |= {"foreground": "auto"} if method == "knn" else {}
        fraction = {"calibration_fraction": 0.8} if "min_steps" in settings_of(method) else {}
        detector = blemish.fit(method, good, **settings_of(method), **more, **fraction)
        made[method] = detector.save(folder / f"{method}.blemish")
    two = blemish.fit("patchcore", good, second="test_resnet", **settings_of("patchcore"))
    made["patchcore, two encoders"] = two.save(folder / "two.blemish")
    from PIL import Image

    for category, seed in (("bolt", 1), ("nut", 2)):
        (folder / category).mkdir(exist_ok=True)
        for index, pixels in enumerate(parts(pictures, seed=seed)):
            Image.fromarray(pixels).save(folder / category / f"{index:02d}.png")
    several = blemish.fit("knn", [folder / "bolt", folder / "nut"], **settings_of("knn"))
    made["knn, two categories"] = several.save(folder / "several.blemish")
    return made


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that a manifest says: fields, fields of these, the first items of lists."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))


def value_at(manifest: Any, path: Sequence[Any]) -> Any:
    for key in path:
        manifest = manifest[key]
    return manifest


def with_value(manifest: Manifest, path: Sequence[Any], value: Any) -> Manifest:
    """A copy with another value at a path; without it where the value is `DELETED`."""
    changed = copy.deepcopy(manifest)
    holder = value_at(changed, path[:-1])
    if value is DELETED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return changed


DELETED = object()


def impossible(manifest: Manifest) -> Iterator[tuple[str, Any, Manifest]]:
    """(field, value, manifest with it) for all that must be refused."""
    for name, values in IMPOSSIBLE.items():
        path = name.split(".")
        if name == "backbone.spec.timm_name" and manifest["backbone"]["spec"].get("patches"):
            continue  # it only says what taught the network that is built
        try:
            value_at(manifest, path)
        except (KeyError, TypeError):
            continue  # a method has no such setting, or this detector no threshold
        for value in values:
            yield name, value, with_value(manifest, path, value)
    for name in ("method", "config", "preprocessing", "backbone", "threshold", "map_scale", "data"):
        if name in manifest:
            yield name, DELETED, with_value(manifest, [name], DELETED)


def altered(manifest: Manifest, random: Random) -> tuple[str, Any, Manifest]:
    """(field, value, manifest) with one field changed at random; `DELETED` where it is left out."""
    paths = list(leaves(manifest))
    path = paths[int(random.integers(len(paths)))]
    was = value_at(manifest, path)
    choices: list[Any] = [*HOSTILE, DELETED]
    if isinstance(was, list):
        choices += [was * 2, was[:1], was[1:], [*was, *was, None], was[::-1]]
    if isinstance(was, dict):
        choices += [{**was, "other": 1}, dict(list(was.items())[:1]), list(was)]
    if isinstance(was, (int, float)) and not isinstance(was, bool):
        choices += [-was, was * 1000, was + 1, str(was)]
    value = choices[int(random.integers(len(choices)))]
    return ".".join(map(str, path)), value, with_value(manifest, path, value)


# Of a tensor: what must be refused, whichever it is. Indices are whole numbers.
BAD_TENSORS = (
    "nan",
    "infinite",
    "minus one",
    "out of range",
    "flattened",
    "another dimension",
    "doubles",
    "missing",
)


def damaged(tensors: State, name: str, how: str) -> State | None:
    """The tensors with one of them made impossible; None where it cannot be so."""
    changed = dict(tensors)
    was = tensors[name]
    if how == "missing":
        del changed[name]
        return changed
    if how in ("nan", "infinite"):
        if not was.is_floating_point() or not was.numel():
            return None
        changed[name] = was.clone()
        changed[name].view(-1)[0] = NAN if how == "nan" else INF
    elif how in ("minus one", "out of range"):
        if (
            was.is_floating_point()
            or not was.numel()
            or name.endswith(("num_batches_tracked", "steps"))
        ):
            return None
        changed[name] = was.clone()
        changed[name].view(-1)[0] = -1 if how == "minus one" else 2**60
    elif how == "flattened":
        if was.dim() < 2:
            return None
        changed[name] = was.reshape(-1)
    elif how == "another dimension":
        if not was.numel():
            return None  # nothing, in any shape
        changed[name] = was[None]
    elif how == "doubles":
        if not was.is_floating_point():
            return None
        changed[name] = (
            was.double()
        )  # half precision may be: weights are kept as they were computed with
    return changed


def table_of(content: bytes) -> dict[str, Any]:
    """The table of tensors in the header of an artifact."""
    length = int.from_bytes(content[:8], "little")
    table: dict[str, Any] = json.loads(content[8 : 8 + length])
    table.pop("__metadata__", None)
    return table


def bad_table(table: Mapping[str, Any], random: Random) -> dict[str, Any]:
    """A table of tensors with an entry that lies."""
    changed = copy.deepcopy(dict(table))
    name = list(changed)[int(random.integers(len(changed)))]
    entry = changed[name]
    doing = int(random.integers(7))
    if doing == 0:
        entry["shape"] = [10**9, 10**9]
    elif doing == 1:
        entry["dtype"] = str(random.choice(["F8", "I64", "BOOL", "", "F128"]))
    elif doing == 2:
        entry["data_offsets"] = [0, entry["data_offsets"][1]]
    elif doing == 3:
        entry["data_offsets"] = [-8, 2**63]
    elif doing == 4:
        entry["shape"] = [*entry["shape"], 0]
    elif doing == 5:
        entry["data_offsets"] = ["0", None]
    else:
        changed[name] = random.choice(np.array([None, [], "x", 5], object))
    return changed


def nested(depth: int = 100_000) -> str:
    """A manifest that is brackets in brackets."""
    return '{"method": ' + "[" * depth + "]" * depth + "}"


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """A command line run in this process: (exit status, standard output, standard error)."""
    import contextlib
    import io

    from blemish import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(each) for each in arguments])
    return status, out.getvalue(), err.getvalue()


Scores = tuple[float, Any, tuple[float, ...]]


def scores_of(out: str) -> Scores:
    """(score, label, map scale's place in it: the threshold) of the one prediction of `--json`."""
    document = json.loads(out)
    row = document["predictions"][0]
    return row["score"], row["label"], (row["threshold"],)


def judged(
    path: Path, picture: Path, known: Scores | None, *, inspected: bool = True
) -> dict[str, Any]:
    """What `predict`, and perhaps `inspect`, make of an artifact, by "verdict".

    refused, right (the scores that are `known`), other (others), bug, memory (said to be out of
    it).
    """
    told = command("inspect", path) if inspected else (0, "", "")
    status, out, err = command(
        "predict", path, picture, "--json", "--device", "cpu", "--precision", "fp32"
    )
    said = told[1] + told[2] + out + err
    for words, verdict in (
        ("bug in blemish", "bug"),
        ("Traceback", "bug"),
        ("out of memory", "memory"),
    ):
        if words in said:
            line = next(line for line in said.splitlines() if words in line)
            return {"verdict": verdict, "why": line[:300]}
    if status == 2:
        return {"verdict": "refused", "why": (err or out).strip()[:300]}
    try:
        found = scores_of(out)
    except (ValueError, KeyError, IndexError):
        return {"verdict": "refused" if status == 1 else "bug", "why": out[:300]}
    same = known is None or found == known
    return {"verdict": "right" if same else "other", "why": f"{found} instead of {known}"[:300]}
