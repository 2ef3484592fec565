"""simulate, inspect, backbones, methods: what there is, made or chosen, and how it is told."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Iterable, Iterator, Mapping
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish.cli import console, options, words
from blemish.cli.console import facts, table
from blemish.cli.options import Artifact, Device, ImageSize, Json, Precision, Weights, Window
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.errors import ConfigError
from blemish.extras import require
from blemish.text import pluralize, printable

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.methods import Method, MethodConfig
    from blemish.report.simulation import Simulation

Facts = Iterator[tuple[str, object]]

Good = Annotated[
    list[Path] | None,
    Argument(metavar="GOOD", help="Pictures of good parts, as `blemish fit` takes them."),
]
Output = Annotated[
    Path | None, Option("--output", "-o", metavar="DIR", help="Folder for what is made.")
]
Guide = Annotated[
    str, Option(help="Whose attention guides: a ViT of `blemish backbones`, or of timm.")
]
GuideLayers = Annotated[
    str,
    Option(metavar="LIST", help="Layers whose attention guides, as in 9,12. [default: the last]"),
]
List = Annotated[bool, Option("--list", help="List the simulators, and leave.")]


def simulate(
    good: Good = None,
    output: Output = None,
    simulator: Annotated[str, Option(metavar="NAME", help="A simulator of --list.")] = "guided",
    count: Annotated[int, Option(min=1, help="Pictures to draw.")] = 16,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Of the draw and the anomalies.")] = 0,
    backbone: Guide = "dinov2_vits14",
    weights: Weights = None,
    image_size: ImageSize = None,
    guide_layers: GuideLayers = "",
    window: Window = None,
    device: Device = "auto",
    precision: Precision = "auto",
    list_simulators: List = False,
    json: Json = False,
) -> int:
    """Make synthetic anomalies in pictures of good parts, to judge them by eye on a contact
    sheet."""
    from blemish.anomalies import SIMULATORS
    from blemish.config import height_width

    if list_simulators:
        head = ("name", "summary", "source")
        rows = [(kind.name, kind.summary, kind.source) for kind in SIMULATORS.values()]
        document = [dict(zip(head, row, strict=True)) for row in rows]
        console.answer(document, [table(head, rows)], as_json=json)
        return WELL
    if not good or output is None:
        raise ConfigError(
            "simulate needs pictures of good parts, and --output DIR; --list lists the simulators"
        )
    size, such_as = image_size or "448", "448, or height x width as in 224x448"
    sides = height_width(size) or options.integers("--image-size", size, such_as)
    layers = options.integers("--guide-layers", guide_layers, "9,12")
    require("torch", "timm", "scipy", purpose="make synthetic anomalies")
    from blemish.report import simulation

    with console.progress() as progress:
        sizes = {"image_size": sides, "guide_layers": layers}
        named = {**options.taken_by(simulation.simulate, locals()), **sizes, "name": simulator}
        made = simulation.simulate(folder=output, **named)
    console.answer(made.to_dict(), simulate_lines(made), as_json=json)
    return BROKEN_PICTURES if made.failures else WELL


def simulate_lines(made: Simulation) -> Iterable[str]:
    """What `blemish simulate` has made."""
    sheets = [str(file) for file in made.files if file.name.startswith("contact-sheet")]
    pictures = (len(made.files) - len(sheets)) // 2
    number = pluralize(pictures, "picture")
    yield f"{number} with an anomaly by {made.simulator}, {len(made.failures)} broken"
    yield from words.broken([failure.to_dict() for failure in made.failures])
    if made.entropy is not None:
        yield (
            f"Entropy of the attention that guides: {made.entropy:.4f} log N "
            "(1 = it looks everywhere alike)"
        )
    if made.guides_nothing:
        yield (
            "warning: the attention is nearly flat and guides nothing; "
            "try other --guide-layers or another --backbone"
        )
    yield from (f"Written: {sheet}" for sheet in sheets)


def inspect(artifact: Artifact, json: Json = False) -> int:
    """Say what an artifact, an exported file, a pre-trained encoder or an interrupted training is,
    and that it is whole."""
    from blemish.artifact import read_manifest
    from blemish.detector.manifest import read_any
    from blemish.engines import files

    size = artifact.stat().st_size if artifact.is_file() else 0
    if files.is_exported(artifact):
        exported = files.read(artifact)
        manifest = dict(exported.manifest)
        size += len(exported.weights or b"")  # which are a file of their own
    else:
        manifest = read_manifest(artifact)
    told = read_any(artifact, manifest).to_dict()
    document = {"artifact": str(artifact), "bytes": size, "whole": True, "manifest": manifest}
    heading = f"{artifact}: whole and unaltered, {size / 2**20:.1f} MiB"
    if "method" in manifest:
        described = artifact_facts(told)
    elif "pretraining" in manifest:
        described = encoder_facts(told)
    else:
        described = checkpoint_facts(told)
    console.answer(document, [heading, facts(described)], as_json=json)
    return WELL


def artifact_facts(values: Mapping[str, Any]) -> Facts:
    """What an artifact says of itself."""
    data, seen = values["data"], values["preprocessing"]
    if exported := values.get("export"):
        yield from _export_facts(exported)
    yield "method", f"{values['method']}, recipe {values['recipe'] or 'of its own'}"
    yield "settings", words.assignments(values["config"])
    for name, encoder in (("backbone", values["backbone"]), ("second", values.get("second"))):
        if encoder is None:
            continue
        spec, weights = encoder["spec"], encoder["weights"]
        yield name, f"{spec['name']} ({spec['about']})"
        sha256 = weights["sha256"] or "none"
        yield "weights", f"{weights['source']}, licence {weights['licence']}, SHA-256 {sha256}"
    window = seen["window"]
    pixels = f", pixel values {window[0]:g} to {window[1]:g}" if window else ""
    stretched = f"{seen['height']}×{seen['width']} (height×width), pictures are stretched to it"
    yield "input", f"{words.resized(seen) or stretched}{pixels}"
    if tiles := words.tiles(values):
        yield "tiles", tiles
    if area := words.area(seen):
        yield "looks at", area
    if closer := words.closer(values["config"]):
        yield "looks closely at", closer
    if part := words.foreground(values.get("foreground")):
        yield "foreground", part
    if bank := words.compression(values.get("compression")):
        yield "bank", bank
    if values.get("categories"):
        yield "categories", ", ".join(values["categories"])
    common, others = words.thresholds(values)
    yield "threshold", common
    for other in others:
        yield "", other
    if regions := values.get("regions"):
        yield "regions above", words.thresholds(regions)[0]
        if regions["smallest"]:
            yield "", f"of {100 * regions['smallest']:.3g} % of the picture at least"
    if parts := values.get("parts"):
        yield "parts above", words.thresholds(parts, "parts")[0]
        yield "", f"parts told by {printable(parts['pattern'])}"
    fitted, calibrated = len(data["fitted"]), len(data["calibrated"])
    yield "pictures", f"{fitted} fitted on, {calibrated} only calibrated on"
    if values.get("shots"):
        yield "drawn", words.shots(values)
    if student := words.student(values):
        yield "student", student
    if "pretraining" in values:
        earlier = values["pretraining"]
        made = words.assignments({**earlier["config"], **earlier["training"]})
        yield "pre-training", f"{earlier['method']} on {earlier['weights']['source']}: {made}"
    if "training" in values:
        yield from _training_facts(values["training"])
    for line in words.alike(data):
        yield "", line
    if data.get("defects"):
        yield "defects", pluralize(len(data["defects"]), "picture")
        if taught := words.taught(values.get("taught")):
            yield "", taught
    yield "recognised", data["layout"]
    yield "broken", f"{pluralize(len(data['failures']), 'picture')} left out"
    yield from _origin_facts(values)


def _export_facts(record: Mapping[str, Any]) -> Facts:
    """What an exported graph is, and what was proven of it."""
    runs = {"onnx": "ONNX Runtime, or OpenVINO", "openvino": "OpenVINO"}[record["kind"]]
    yield "exported", f"for {runs}, in {record['precision']}, opset {record['opset']}"
    pictures = {"normalised": "prepared pictures", "pixels": "RGB pixels of the input's size"}
    yield "", f"from {pictures[record['input']]} to {', '.join(record['outputs'])}"
    if record["proof"]:
        yield "proof", words.proof(record["proof"])
    yield "of the artifact", f"SHA-256 {record['source']}"


def encoder_facts(values: Mapping[str, Any]) -> Facts:
    """What the file of a pre-trained encoder says of itself."""
    data, spec, weights = values["data"], values["backbone"]["spec"], values["backbone"]["weights"]
    recipe = values["recipe"] or "of its own"
    yield "encoder", f"pre-trained by {values['pretraining']}, recipe {recipe}"
    yield "settings", words.assignments(values["config"])
    yield "backbone", f"{spec['name']} ({spec['about']})"
    yield "started from", f"{weights['source']}, SHA-256 {weights['sha256'] or 'none'}"
    yield "licence", weights["licence"]
    broken = len(data["failures"])
    yield "pictures", f"{data['count']} learned from, {broken} broken ones left out"
    yield from _training_facts(values["training"])
    yield "recognised", data["layout"]
    yield from _origin_facts(values)


def checkpoint_facts(values: Mapping[str, Any]) -> Facts:
    """What the checkpoint of a training says of itself."""
    method, step, steps = values["identity"].get("method"), values["step"], values["steps"]
    yield "training", f"of {method}, {step:,} of {steps:,} steps made"
    yield "settings", words.assignments(values["identity"].get("config", {}))
    yield "so far", f"{values['seconds']:.0f} s, loss {values['loss']:.4g}"
    yield "next", "the command that began it goes on from here with --resume"


def _training_facts(made: Mapping[str, Any]) -> Facts:
    """What a training was, and how its loss fell."""
    yield "training", words.assignments(made)
    if made.get("curve"):
        yield "loss", ", ".join(f"{loss:.3g} by step {step:,}" for step, loss in made["curve"])


def _origin_facts(values: Mapping[str, Any]) -> Facts:
    """Of which pictures, when, how and by what it was made."""
    yield "fingerprint", values["data"]["fingerprint"]
    made_by = f"{values['created']} by blemish {values['blemish']}"
    yield "made", f"{made_by}, format {values['format']}" if "format" in values else made_by
    where = f"on {values['device']} in {values['precision']}, seed {values['seed']}"
    yield "in", f"{values['seconds']:.1f} s {where}"
    yield "versions", ", ".join(f"{name} {number}" for name, number in values["versions"].items())


def backbones(json: Json = False) -> int:
    """List the backbones; any other timm model works too."""
    require("torch", "timm", purpose="list the backbones")
    from dataclasses import asdict

    from blemish.backbones import SPECS

    specs = list(SPECS.values())
    layers = [", ".join(map(str, one.layers)) or "the middle" for one in specs]
    rows = [
        (one.name, one.about, where, one.source, one.licence)
        for one, where in zip(specs, layers, strict=True)
    ]
    head = ("name", "what it is", "layers", "weights from", "licence")
    console.answer([asdict(one) for one in specs], [table(head, rows)], as_json=json)
    return WELL


def methods(
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Show the settings and recipes of this method.")
    ] = None,
    json: Json = False,
) -> int:
    """List the methods or, given the name of one, its settings and recipes."""
    require("torch", "timm", purpose="list the methods")
    from blemish.methods import METHODS, method_class

    if name is not None:
        described = _described(name, method_class(name))
        console.answer(described, _method_lines(described), as_json=json)
        return WELL
    known = [_described(name, kind) for name, kind in METHODS.items()]
    keys = ("name", "summary", "source", "learns_from")
    rows = [[method[key] for key in keys] for method in known]
    more = "`blemish methods NAME` shows the settings and recipes of one."
    shown = table(("name", "what it does", "paper", "learns from"), rows)
    console.answer(known, [shown, more], as_json=json)
    return WELL


def _described(name: str, kind: type[Method]) -> dict[str, Any]:
    """A method, with the settings and recipes of its config class and what its docstring says of
    them; JSON-ready."""
    from blemish.config import to_dict

    default = to_dict(kind.Config.best())
    meanings = _meanings(kind.Config)
    recipes = []
    for recipe, make in kind.Config.recipes().items():
        changes = {key: value for key, value in to_dict(make()).items() if value != default[key]}
        about = (getdoc(make) or "").partition("\n")[0]
        recipes.append({"name": recipe, "about": about, "changes": changes})
    return {
        "name": name,
        "summary": kind.summary,
        "source": kind.source,
        "learns_from": "good pictures and defects" if kind.takes_defects else "good pictures",
        "minimum_images": kind.minimum_images,
        "settings": [
            {"name": key, "default": value, "about": meanings.get(key, "")}
            for key, value in default.items()
        ],
        "recipes": recipes,
    }


def _meanings(kind: type[MethodConfig]) -> dict[str, str]:
    """What a config class and its bases say of each field under "Attributes:"."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = cleandoc(base.__dict__.get("__doc__") or "").partition("\nAttributes:\n")
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            meanings |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return meanings


def _method_lines(method: Mapping[str, Any]) -> Iterable[str | Table]:
    yield f"{method['name']}: {method['summary']} ({method['source']})"
    yield f"learns from {method['learns_from']}, {method['minimum_images']} or more"
    rows = [
        (one["name"], json_format.dumps(one["default"]), one["about"]) for one in method["settings"]
    ]
    yield table(("setting", "default", "meaning"), rows)
    for recipe in method["recipes"]:
        changes = words.assignments(recipe["changes"]) or "the defaults"
        yield f"recipe {recipe['name']}: {changes}"
