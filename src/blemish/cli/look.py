"""simulate, inspect, backbones, methods: the commands that look at what there is, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli import console, options, words
from blemish.cli.console import facts, table
from blemish.cli.options import (
    Artifact,
    Device,
    ImageSize,
    Json,
    Precision,
    Window,
)
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.report.simulation import Simulation


def simulate(
    good: Annotated[
        list[Path] | None,
        typer.Argument(metavar="GOOD", help="Pictures of good parts, as `blemish fit` takes them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for what is made.")
    ] = None,
    simulator: Annotated[
        str, typer.Option(metavar="NAME", help="A simulator of --list.")
    ] = "guided",
    count: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and the anomalies.")] = 0,
    backbone: Annotated[
        str, typer.Option(help="Whose attention guides: a ViT of `blemish backbones`, or of timm.")
    ] = "dinov2_vits14",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights of the backbone, in place of its own source."),
    ] = None,
    image_size: ImageSize = None,
    guide_layers: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Layers whose attention guides, as in 9,12. [default: the last]"
        ),
    ] = "",
    window: Window = None,
    device: Device = "auto",
    precision: Precision = "auto",
    list_simulators: Annotated[
        bool, typer.Option("--list", help="List the simulators, and leave.")
    ] = False,
    json: Json = False,
) -> int:
    """Make synthetic anomalies in pictures of good parts, to judge them by eye on a contact sheet."""
    if list_simulators:
        return _list_simulators(as_json=json)
    if not good or output is None:
        raise ConfigError(
            "simulate needs pictures of good parts, and --output DIR; --list lists the simulators"
        )
    from blemish.report import simulation

    with console.progress() as progress:
        made = simulation.simulate(
            good,
            output,
            name=simulator,
            count=count,
            seed=seed,
            backbone=backbone,
            weights=weights,
            image_size=_size(image_size or "448"),
            guide_layers=options.integers("--guide-layers", guide_layers, "9,12"),
            window=options.interval("--window", window),
            device=device,
            precision=precision,
            progress=progress,
        )
    console.answer(made.to_dict(), simulate_lines(made), as_json=json)
    return BROKEN_PICTURES if made.failures else WELL


def simulate_lines(made: Simulation) -> Iterable[str]:
    """What `blemish simulate` has made."""
    sheets = [str(file) for file in made.files if file.name.startswith("contact-sheet")]
    pictures = (len(made.files) - len(sheets)) // 2
    yield f"{pictures} pictures with an anomaly by {made.simulator}, {len(made.failures)} broken"
    yield from words.broken([failure.to_dict() for failure in made.failures])
    if made.entropy is not None:
        yield f"Entropy of the attention that guides: {made.entropy:.4f} log N (1 = it looks everywhere alike)"
    if made.guides_nothing:
        yield "warning: the attention is nearly flat and guides nothing; try other --guide-layers or another --backbone"
    yield from (f"Written: {sheet}" for sheet in sheets)


def _list_simulators(*, as_json: bool) -> int:
    from blemish.anomalies import SIMULATORS

    rows = [(kind.name, kind.summary, kind.source) for kind in SIMULATORS.values()]
    head = ("name", "summary", "source")
    console.answer(
        [dict(zip(head, row, strict=True)) for row in rows],
        [console.table(head, rows)],
        as_json=as_json,
    )
    return WELL


def _size(text: str) -> list[int]:
    from blemish.config import height_width

    return [
        *(
            height_width(text)
            or options.integers("--image-size", text, "448, or height x width as in 224x448")
        )
    ]


def inspect(
    artifact: Artifact,
    json: Json = False,
) -> int:
    """Say what an artifact, a pre-trained encoder or an interrupted training is, and that it is whole."""
    from blemish.artifact import read
    from blemish.detector.manifest import read_any

    _, manifest = read(artifact)
    told = read_any(artifact, manifest).to_dict()
    size = artifact.stat().st_size
    document = {"artifact": str(artifact), "bytes": size, "whole": True, "manifest": manifest}
    heading = f"{artifact}: whole and unaltered, {size / 2**20:.1f} MiB"
    if "method" in manifest:
        described = artifact_table(told)
    elif "pretraining" in manifest:
        described = encoder_table(told)
    else:
        described = checkpoint_table(told)
    console.answer(document, [heading, described], as_json=json)
    return WELL


def artifact_table(values: Mapping[str, Any]) -> Table:
    """What an artifact says of itself."""
    data, weights = values["data"], values["backbone"]["weights"]
    spec, preprocessing = values["backbone"]["spec"], values["preprocessing"]
    common, *others = words.thresholds(values)
    size, window = f"{preprocessing['height']}×{preprocessing['width']}", preprocessing["window"]
    return facts(
        [
            ("method", f"{values['method']}, recipe {values['recipe'] or 'of its own'}"),
            ("settings", words.assignments(values["config"])),
            ("backbone", f"{spec['name']} ({spec['about']})"),
            (
                "weights",
                f"{weights['source']}, licence {weights['licence']}, SHA-256 {weights['sha256'] or 'none'}",
            ),
            (
                "input",
                f"{size} (height×width)"
                + (f", pixel values {window[0]:g} to {window[1]:g}" if window else ""),
            ),
            *(
                [("categories", ", ".join(values["categories"]))]
                if values.get("categories")
                else []
            ),
            ("threshold", common),
            *(("", f"of {other}") for other in others),
            (
                "pictures",
                f"{len(data['fitted'])} fitted on, {len(data['calibrated'])} only calibrated on",
            ),
            *([("drawn", words.shots(values))] if values.get("shots") else []),
            *(
                [("pre-training", _pretrained(values["pretraining"]))]
                if "pretraining" in values
                else []
            ),
            *(_training(values["training"]) if "training" in values else []),
            *(("", line) for line in words.alike(data)),
            ("recognised", data["layout"]),
            ("broken", f"{len(data['failures'])} pictures left out"),
            ("fingerprint", data["fingerprint"]),
            *_origin(values),
        ]
    )


def encoder_table(values: Mapping[str, Any]) -> Table:
    """What the file of a pre-trained encoder says of itself."""
    data, spec, weights = values["data"], values["backbone"]["spec"], values["backbone"]["weights"]
    return facts(
        [
            (
                "encoder",
                f"pre-trained by {values['pretraining']}, recipe {values['recipe'] or 'of its own'}",
            ),
            ("settings", words.assignments(values["config"])),
            ("backbone", f"{spec['name']} ({spec['about']})"),
            ("started from", f"{weights['source']}, SHA-256 {weights['sha256'] or 'none'}"),
            ("licence", weights["licence"]),
            (
                "pictures",
                f"{data['count']} learned from, {len(data['failures'])} broken ones left out",
            ),
            *_training(values["training"]),
            ("recognised", data["layout"]),
            ("fingerprint", data["fingerprint"]),
            *_origin(values),
        ]
    )


def checkpoint_table(values: Mapping[str, Any]) -> Table:
    """What the checkpoint of a training says of itself."""
    identity = values["identity"]
    return facts(
        [
            (
                "training",
                f"of {identity.get('method')}, {values['step']:,} of {values['steps']:,} steps made",
            ),
            ("settings", words.assignments(identity.get("config", {}))),
            ("so far", f"{values['seconds']:.0f} s, loss {values['loss']:.4g}"),
            ("next", "the command that began it goes on from here with --resume"),
        ]
    )


def _training(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a training was, and how its loss fell."""
    points = [f"{loss:.3g} by step {step:,}" for step, loss in made.get("curve", [])]
    return [("training", _without_curve(made)), *([("loss", ", ".join(points))] if points else [])]


def _without_curve(made: Mapping[str, Any]) -> str:
    return words.assignments({name: value for name, value in made.items() if name != "curve"})


def _pretrained(told: Mapping[str, Any]) -> str:
    made = _without_curve({**told["config"], **told["training"]})
    return f"{told['method']} on {told['weights']['source']}: {made}"


def _origin(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    made_in = f"{values['seconds']:.1f} s on {values['device']} in {values['precision']}, seed {values['seed']}"
    return [
        ("made", f"{values['created']} by blemish {values['blemish']}, format {values['format']}"),
        ("in", made_in),
        ("versions", ", ".join(f"{name} {number}" for name, number in values["versions"].items())),
    ]


def backbones(json: Json = False) -> int:
    """List the backbones; any other timm model works too."""
    from dataclasses import asdict

    from blemish.backbones import SPECS

    rows = [
        (
            spec.name,
            spec.about,
            ", ".join(map(str, spec.layers)) or "the middle",
            spec.source,
            spec.licence,
        )
        for spec in SPECS.values()
    ]
    head = ("name", "what it is", "layers", "weights from", "licence")
    console.answer(
        [asdict(spec) for spec in SPECS.values()], [console.table(head, rows)], as_json=json
    )
    return WELL


def methods(json: Json = False) -> int:
    """List the methods with their settings and recipes."""
    from blemish.cli.catalogue import describe_methods

    known = describe_methods()
    console.answer(known, methods_lines(known), as_json=json)
    return WELL


def methods_lines(described: Iterable[Mapping[str, Any]]) -> Iterable[str | Table]:
    """The methods of `blemish.cli.catalogue.describe_methods`."""
    for number, method in enumerate(described):
        if number:
            yield ""
        yield f"{method['name']}: {method['summary']} ({method['source']})"
        rows = [
            (f"  {it['name']}", json.dumps(it["default"]), it["about"]) for it in method["settings"]
        ]
        yield table(("  setting", "default", "meaning"), rows)
        for recipe in method["recipes"]:
            yield f"  recipe {recipe['name']}: {words.assignments(recipe['changes']) or 'the defaults'}"
