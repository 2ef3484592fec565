"""What an artifact from a stranger may say: with a right digest, anything. It is refused by the
field's name, or scores as before; it never fetches, never runs long, never ends in another error.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Fitted, Part, part, settings_of
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import BackboneSpec, build, hollow, restore
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, ConfigError
from blemish.methods import METHODS

MISSING = object()
WRONG: list[Any] = [
    MISSING, None, True, -1, 0, 0.5, 10**9, 10**30, 1e308, math.nan,
    math.inf, "", "x", "hf-hub:a/b", [], {}, [1, 2, 3], [-1, 0], ["x"], {"a": 1},
]  # fmt: skip
# What a field may legally say otherwise, so that other scores are what was asked for.
ASKED_FOR = {
    "config.layers", "config.layers.0", "config.smoothing", "config.top_fraction", "config.softmax",
    "config.score_window", "config.sharpness", "config.shrinkage", "config.weight",
    "config.head_weight", "config.active",
    "config.padding", "config.pooling", "preprocessing.mean.0", "preprocessing.window",
    "backbone.spec.antialias",
}  # fmt: skip
Manifest = dict[str, Any]


@pytest.fixture(params=METHODS)
def whole(request: pytest.FixtureRequest, fitted: Fitted) -> Detector:
    return _detector(request.param, fitted)


@cache
def _detector(method: str, fitted: Fitted) -> Detector:
    """A small detector of the method, which has learned defects where it can."""
    if not METHODS[method].takes_defects:
        return fitted(method)
    paper = {"recipe": "paper", "calibration_fraction": 0, "min_steps": 3}
    settings = settings_of(method) | (paper if method in {"atacnet", "dra", "ahl"} else {})
    defects = [part(seed, defect=True) for seed in range(3)]
    return blemish.fit(method, [part(seed) for seed in range(8)], anomalies=defects, **settings)


def rewritten(path: Path, manifest: Any, tensors: dict[str, Tensor]) -> Path:
    """An artifact that says this, with the right digest, whatever JSON it takes."""
    artifact.write(path, tensors, {})
    table, data = artifact._parts(path.read_bytes(), path)
    del table["__metadata__"]
    text = json.dumps(manifest)
    table["__metadata__"] = {"manifest": text, "digest": artifact._digest(text, table, data)}
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def content(detector: Detector) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = json.loads(json.dumps({**detector.manifest, "format": artifact.FORMAT}))
    return manifest, {
        name: tensor.clone() for name, tensor in detector.method.fitted_state().items()
    }


def changed(manifest: Manifest, place: tuple[Any, ...], value: Any) -> Manifest:
    manifest = copy.deepcopy(manifest)
    inner: Any = manifest
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return manifest


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a manifest says anything; of a list its first entry."""
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        blemish.load(path, device="cpu", precision="fp32")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < 700 + len(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def _scored_or_refused(shown: np.ndarray) -> tuple[float | None, str]:
    try:
        return blemish.load("x.blemish", device="cpu", precision="fp32").predict(shown).score, ""
    except ArtifactError as error:
        return None, str(error)


def check_fields(
    detector: Detector, some: Callable[[int], list[Any]], picture: Part, patch: pytest.MonkeyPatch
) -> int:
    """Every field with some of the wrong values; the number of the cases."""
    manifest, tensors = content(detector)
    shown = picture(9, defect=True)
    expected = detector.predict(shown).score
    cases = 0
    for number, place in enumerate(places(manifest)):
        name = ".".join(map(str, place))
        for value in some(number):
            other = changed(manifest, place, value)
            patch.setattr(artifact, "read", lambda path, other=other: (dict(tensors), other))
            score, said = _scored_or_refused(shown)
            named = [str(key) for key in place if isinstance(key, str)]
            if score is None:
                assert said.startswith("x.blemish: "), (name, value, said)
                assert any(key in said for key in named) or "tensors do not fit" in said, (
                    name,
                    value,
                    said,
                )
            else:
                assert score == expected or name in ASKED_FOR, (name, value, score)
            cases += 1
    return cases


def test_any_field_that_is_missing_or_wrong(
    whole: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each field with two of the wrong values, others in each method."""
    start = list(METHODS).index(whole.method.name)
    cases = check_fields(
        whole,
        lambda n: [WRONG[(3 * n + start) % len(WRONG)], WRONG[(n + 7) % len(WRONG)]],
        picture,
        monkeypatch,
    )
    assert cases > 100


@pytest.mark.slow
def test_any_field_with_any_wrong_value(
    whole: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_fields(whole, lambda _: WRONG, picture, monkeypatch)


LISTED: list[tuple[str, str, Any, str]] = [
    ("knn", "preprocessing.height", 0, "preprocessing.height"),
    ("knn", "preprocessing.width", -64, "preprocessing.width"),
    ("knn", "preprocessing.height", 10**9, "preprocessing.height"),
    ("knn", "preprocessing.height", 128, "preprocessing.height"),
    ("knn", "config.image_size", [10**9], "config.image_size"),
    ("knn", "preprocessing.mean", [0.5], "preprocessing.mean"),
    ("knn", "preprocessing.mean", [0.5] * 4, "preprocessing.mean"),
    ("knn", "preprocessing.std", [0.2, -0.2, 0.2], "preprocessing.std"),
    ("knn", "preprocessing.std", [0.2, 0, 0.2], "preprocessing.std"),
    ("knn", "preprocessing.std", [], "preprocessing.std"),
    ("knn", "preprocessing.window", [1.0], "preprocessing.window"),
    ("knn", "preprocessing.window", [2.0, 1.0], "preprocessing.window"),
    ("knn", "preprocessing.window", {"low": 1}, "preprocessing.window"),
    ("knn", "config.layers", [], "config.layers"),
    ("knn", "config.layers", [2, 2], "config.layers: 2 is named twice"),
    ("knn", "config.layers", [2, 99], "layer 99 does not exist"),
    ("knn", "threshold.value", -1e308, "threshold.value"),
    ("knn", "threshold.value", math.nan, "threshold.value"),
    ("knn", "threshold.value", math.inf, "threshold.value"),
    ("knn", "threshold.n", -5, "threshold.n"),
    ("knn", "threshold.n", 3, "threshold.n"),
    ("knn", "format", 0, "format 0"),
    ("knn", "format", True, "format is True"),
    ("knn", "format", -1, "format -1"),
    ("knn", "map_scale", [math.nan, 1.0], "map_scale"),
    ("knn", "map_scale", [1.0, 0.0], "map_scale"),
    ("knn", "map_scale", [0.0, math.inf], "map_scale"),
    ("knn", "config.bank_size", 10**12, "config.bank_size"),
    ("knn", "config.backbone", "hf-hub:timm/vit", "config.backbone"),
    ("agpnet", "config.attentions", 10**9, "config.attentions"),
    ("agpnet", "config.depth", 10**9, "config.depth"),
    ("agpnet", "config.width", 8192, "do not fit method 'agpnet': decoder."),
    (
        "knn",
        "backbone.spec.timm_name",
        "vit_7b_patch16_dinov3",
        "do not fit method 'knn': backbone.model.",
    ),
    ("knn", "backbone.spec.timm_name", "resnet18", "kind: resnet18 is a cnn"),
    ("knn", "backbone.spec.timm_name", "test_vit.no_such_tag", "backbone.spec"),
    ("knn", "backbone.spec.kind", "cnn", "kind: test_vit is a vit"),
]


@pytest.mark.parametrize(("method", "field", "value", "says"), LISTED)
def test_wrong_values_are_refused_by_name(
    method: str, field: str, value: Any, says: str, fitted: Fitted, tmp_path: Path
) -> None:
    manifest, tensors = content(fitted(method))
    began = time.perf_counter()
    path = rewritten(
        tmp_path / "x.blemish", changed(manifest, tuple(field.split(".")), value), tensors
    )
    assert says in refused(path)
    assert time.perf_counter() - began < 10  # of 10⁹ attentions, and of a giant, not one is built


def wrong_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor | None]]:
    yield "missing", None
    yield (
        "of another kind",
        tensor.to(torch.float64) if tensor.dtype == torch.int64 else tensor.to(torch.int64),
    )
    yield "with one side more", tensor[None]
    if tensor.ndim > 1 and tensor.shape[0] != tensor.shape[1]:
        yield "turned", tensor.transpose(0, 1).contiguous()
    yield "longer", torch.cat([tensor, tensor]) if tensor.ndim else tensor.repeat(2)
    if tensor.is_floating_point() and tensor.numel():
        for value in (math.nan, math.inf):
            damaged = tensor.clone()
            damaged.view(-1)[-1] = value
            yield f"with {value}", damaged
    elif tensor.numel():
        yield "negative", tensor - 2**40
        yield "out of range", tensor + 2**60


def test_tensors_that_cannot_be(
    whole: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it has learned, and the first and the last of its networks, each wrong in every
    way.
    """
    manifest, tensors = content(whole)
    with hollow():
        empty = type(whole.method)(
            whole.method.config, restore(whole.record.backbone.spec, whole.method.backbone.info)
        )
    learned = [name for name in empty.learned_tensors() if tensors[name].numel()]
    assert learned
    of_networks = [name for name in tensors if name not in empty.learned_tensors()]
    # How many rows it remembers is for the bank to say: beside one another they have to go
    # together.
    for name in (*learned, of_networks[0], of_networks[-1]):
        for how, wrong in wrong_tensors(name, tensors[name]):
            if (name, how) == ("bank", "longer") and "owners" not in tensors:
                continue  # how much it remembers nothing else says
            found = {key: tensor for key, tensor in tensors.items() if key != name}
            if wrong is not None:
                found[name] = wrong
            monkeypatch.setattr(
                artifact, "read", lambda _path, found=found: (dict(found), manifest)
            )
            with pytest.raises(
                ArtifactError, match=r"^x\.blemish: the tensors do not fit"
            ) as caught:
                blemish.load("x.blemish", device="cpu", precision="fp32")
            assert name.rsplit(".", 1)[-1] in str(caught.value) or how in (
                "longer",
                "with one side more",
            ), (name, how)


@pytest.mark.parametrize(
    ("method", "name", "change", "says"),
    [
        ("padim", "whiteners", torch.zeros_like, "positive diagonal"),
        ("padim", "means", lambda means: means.round().long(), "means: is int64, not float32"),
        ("padim", "subset", lambda subset: subset + 1, "subset: holds 64; at most 63"),
        ("padim", "subset", lambda subset: subset.flip(0).contiguous(), "subset: does not ascend"),
        ("padim", "subset", torch.zeros_like, "subset: does not ascend"),
        ("knn", "bank", lambda bank: 1000 * bank, "bank: holds"),
        ("knn", "owners", lambda owners: -1 - owners, "owners: holds"),
        ("guided", "normal", torch.zeros_like, "normal: holds a spread that is not positive"),
        (
            "guided",
            "reference.moments",
            torch.zeros_like,
            "reference.moments: holds a spread that is not positive",
        ),
        ("guided", "pictured", lambda pictured: pictured + 1, "pictured"),
        ("guided", "reference.patch_counts", lambda counts: -counts, "patch_counts: holds"),
        ("agpnet", "steps", torch.zeros_like, "steps: holds 0"),
        ("spade", "gallery", lambda gallery: gallery.float(), "gallery: is float32, not float16"),
        ("spade", "gallery", lambda gallery: gallery / 0, "gallery: holds NaN or infinite"),
        ("dra", "reference", lambda mean: mean / 0, "reference: holds NaN or infinite"),
        ("dra", "reference", lambda mean: mean[:, 1:].clone(), "reference: has the shape"),
        ("simplenet", "discriminator.norm.running_var", lambda var: var - 9, "running_var: holds"),
        (
            "knn",
            "backbone.model.surplus",
            lambda _: torch.ones(1),
            "backbone.model.surplus: is not part of it",
        ),
    ],
)
def test_values_of_tensors_that_cannot_be(
    method: str,
    name: str,
    change: Callable[[Any], Tensor],
    says: str,
    fitted: Fitted,
    tmp_path: Path,
) -> None:
    manifest, tensors = content(fitted(method))
    tensors[name] = change(tensors.get(name))
    assert says in refused(rewritten(tmp_path / "x.blemish", manifest, tensors))


def test_nothing_is_allocated_before_it_fits(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of a thousand million weights and a decoder of 64 layers exist on the device "meta"
    alone.
    """
    manifest, tensors = content(fitted("agpnet"))
    manifest = changed(manifest, ("config", "width"), 8192)
    manifest = changed(manifest, ("config", "depth"), 64)
    manifest = changed(manifest, ("backbone", "spec", "timm_name"), "vit_7b_patch16_dinov3")
    path = rewritten(tmp_path / "x.blemish", manifest, tensors)
    devices = set()
    register = torch.nn.Module.register_parameter

    def noted(self: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        devices.add(None if parameter is None else parameter.device.type)
        register(self, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", noted)
    assert "do not fit method 'agpnet'" in refused(path)
    assert devices <= {"meta", None}


# The names of models

HOSTILE = [
    "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "hf_hub:timm/vit",
    "local-dir:/etc", "local-dir:.",
    "https://example.com/model", "test_vit/../test_vit", "/etc/passwd", "test_vit.a:b",
    "test_vit.a/b", " test_vit",
    "test_vit\n", "", ".", "test_vit.", "no_such_model",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_only_names_that_timm_has_are_built(name: str, fitted: Fitted, tmp_path: Path) -> None:
    manifest, tensors = content(fitted("knn"))
    path = rewritten(
        tmp_path / "x.blemish", changed(manifest, ("backbone", "spec", "timm_name"), name), tensors
    )
    assert "backbone.spec.timm_name" in refused(path)
    with pytest.raises(ConfigError):
        build(name, weights="random")
    spec = dict(name="x", kind="vit", layers=(), licence="", about="")
    with pytest.raises(ConfigError, match="timm_name"):
        restore(BackboneSpec(timm_name=name, **spec), fitted("knn").method.backbone.info)  # type: ignore[arg-type]


PREDICTS = """
import json, sys
import blemish, numpy as np
from blemish.errors import ArtifactError

watched, opened = False, []

def refuse(event, arguments):
    networks = ("socket.", "urllib.", "ftplib.", "smtplib.")
    if watched and (event.startswith(networks) or event in ("subprocess.Popen",
                    "os.system", "os.exec", "os.posix_spawn", "os.fork")):
        raise RuntimeError(f"{event} {arguments}")
    if watched and event == "open" and "foreign" in str(arguments[0]):
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(refuse)
import socket
# Imports what is asked for late.
blemish.load(sys.argv[1], device="cpu").predict(np.zeros((64, 64, 3), dtype=np.uint8))
watched = True
connect = lambda: socket.create_connection(("127.0.0.1", 9))
for attempt in (connect, lambda: open("foreign/config.json")):
    try:
        attempt()
    except RuntimeError:
        continue
    raise SystemExit("the hook does not watch")
picture = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
for path in sys.argv[1:]:
    try:
        detector = blemish.load(path, device="cpu", precision="fp32")
        print("scored", detector.predict(picture).score)
    except ArtifactError as error:
        print("refused", error)
"""


def test_prediction_from_any_artifact_opens_no_socket(fitted: Fitted, tmp_path: Path) -> None:
    """Of every method, and with hostile names, in a process that may not: no socket, no process, no
    foreign folder.
    """
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"architecture": "test_vit"}')
    wholes = [_detector(method, fitted).save(tmp_path / f"{method}.blemish") for method in METHODS]
    manifest, tensors = content(fitted("knn"))
    hostile = []
    for number, name in enumerate([*HOSTILE, f"local-dir:{foreign}", str(foreign)]):
        for field in (
            ("backbone", "spec", "timm_name"),
            ("backbone", "spec", "name"),
            ("config", "backbone"),
        ):
            path = tmp_path / f"{number}-{field[-1]}.blemish"
            hostile.append(rewritten(path, changed(manifest, field, name), tensors))
    script = tmp_path / "predicts.py"
    script.write_text(textwrap.dedent(PREDICTS))
    environment = {**os.environ, "PYTHONPATH": str(Path(blemish.__file__).parents[1])}
    environment.pop("HF_HUB_OFFLINE", None)  # that nothing is asked for is not to depend on it
    command = [sys.executable, script, *wholes, *hostile]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = [line.split()[0] for line in ended.stdout.splitlines()]
    assert said == ["scored"] * len(wholes) + ["refused"] * len(hostile)


# What is read beside prediction


@pytest.mark.parametrize("number", [0, 9, 14])
def test_inspect_names_the_field(
    number: int, fitted: Fitted, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    manifest, tensors = content(fitted("knn"))
    for place in places(manifest):
        path = rewritten(tmp_path / "x.blemish", changed(manifest, place, WRONG[number]), tensors)
        status, out, err = run("inspect", path)
        assert (status, "bug" in err) in ((0, False), (2, False)), (place, err)
        if status:
            assert out == ""
            assert any(str(key) in err for key in place if isinstance(key, str)), (place, err)


def test_a_manifest_too_deep_to_go_through_is_damaged(
    fitted: Fitted, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    manifest, tensors = content(fitted("knn"))
    deep: Any = []
    for _ in range(500):  # what Python reads, and fails to write again
        deep = [deep]
    path = rewritten(tmp_path / "x.blemish", {**manifest, "later": deep}, tensors)
    assert "too deeply nested" in refused(path)
    status, out, err = run("inspect", path, "--json")
    assert status == 2
    assert "too deeply nested" in out + err


def test_what_later_versions_add_is_kept(fitted: Fitted, tmp_path: Path) -> None:
    manifest, tensors = content(fitted("knn"))
    later = {**manifest, "colour": {"of": ["x", 1]}, "data": {**manifest["data"], "camera": "left"}}
    path = rewritten(tmp_path / "x.blemish", later, tensors)
    again = (
        blemish.load(path, device="cpu", precision="fp32")
        .with_threshold(1.0)
        .save(tmp_path / "y.blemish")
    )
    found = artifact.read(again)[1]
    assert (found["colour"], found["data"]["camera"]) == ({"of": ["x", 1]}, "left")
    assert "other" not in found
    assert found["threshold"]["value"] == 1.0
