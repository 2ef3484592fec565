"""Every file that is read and is no picture and no detector, with the commands that read it.

Tables of pictures, what a cluster is given, settings, result rows, predictions to go on from,
checkpoints, encoders, weights, exported files and suites: each is made right first, and then
damaged or forged.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fuzzing import artifacts, exported, sources
from fuzzing.artifacts import Random, command
from fuzzing.damage import flipped, scribbled, truncated

FIT = (
    *("--backbone", "test_vit", "--weights", "random", "--image-size", "32", "--layers", "2,4"),
    *("--precision", "fp32", "--device", "cpu"),
)
BRIEF = ("--set", "min_steps=2", "--set", "epochs=1", "--set", "train_batch_size=4")
APMASK = (
    *(*FIT[:4], "--device", "cpu", "--precision", "fp32"),
    *("--set", "image_size=32", "--set", "picture_size=32", "--set", "local_size=16"),
    *("--set", "prototypes=32", "--set", "hidden=32"),
    *("--set", "bottleneck=16", "--set", "local_views=2"),
)
CELLS = (
    *("", "x", "0", "1", "-1", "1e999", "nan", "../../../etc/passwd", "/dev/zero", "a\0b", "a\nb"),
    *("a\rb", '"', '""', "'", "=1+1", "@SUM(A1)", "\x1b[2J", "é", "\ufeff", "x" * 200_000, "|"),
    *("a|b|c", "good", "bad"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A file that a command reads.

    Attributes:
        name: what it is. file: its path. right: its content as blemish or a person writes it.
        run: the command that reads it. form: "bytes", "table", "json", "lines" (JSON a line),
            "artifact", "toml", "pickle" (of PyTorch), "onnx" or "xml" (as exported), "parquet".
        ready: called before each attempt, to put the rest back as it was.
    """

    name: str
    file: Path
    right: bytes
    run: Callable[[], tuple[int, str, str]]
    form: str
    ready: Callable[[], None] = lambda: None

    def attempt(self, content: bytes) -> dict[str, Any]:
        """What the command makes of this content, by "verdict": refused, accepted, bug or
        memory."""
        self.ready()
        self.file.write_bytes(content)
        status, out, err = self.run()
        said = out + err
        for words, verdict in (
            ("bug in blemish", "bug"),
            ("Traceback", "bug"),
            ("out of memory", "memory"),
        ):
            if words in said:
                return {
                    "verdict": verdict,
                    "why": next(row for row in said.splitlines() if words in row)[:300],
                }
        return {"verdict": "refused" if status == 2 else "accepted", "why": err.strip()[:200]}


def hostile(right: bytes, form: str, random: Random) -> bytes:
    """The content of a file of such a form, damaged or forged."""
    if random.random() < 0.25:
        damage = (flipped, scribbled, truncated, _with_odd_bytes)[int(random.integers(4))]
        return damage(right, random)
    return _FORMS[form](right, random)


def _with_odd_bytes(data: bytes, random: Random) -> bytes:
    odd = (
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\x1a",
        b"\xed\xa0\x80",
        b"[" * 100_000,
        b"9" * 5000,
    )
    at = int(random.integers(len(data) + 1))
    return data[:at] + odd[int(random.integers(len(odd)))] + data[at:]


def _table(right: bytes, random: Random) -> bytes:
    rows = [line.split(",") for line in right.decode().splitlines()]
    doing, place = int(random.integers(7)), int(random.integers(len(rows)))
    row = rows[place]
    if doing <= 2:
        row[int(random.integers(len(row)))] = CELLS[int(random.integers(len(CELLS)))]
    elif doing == 3:
        rows.insert(place, [*row])
    elif doing == 4:
        row += ["more", ""]
    elif doing == 5:
        del row[int(random.integers(len(row)))]
    else:
        return b";".join(right.split(b",")) if random.random() < 0.5 else b"\n".join([b""] * 9)
    return "\n".join(",".join(cells) for cells in rows).encode("utf-8", "surrogatepass")


def _json(right: bytes, random: Random) -> bytes:
    document = json.loads(right)
    if random.random() < 0.1 or not document:
        others = ("null", "[]", "5", '"x"', "[" * 50_000, '{"a":' * 20_000, "{}", "NaN", "1" * 5000)
        return others[int(random.integers(len(others)))].encode()
    _, _, changed = artifacts.altered(document, random)
    return json.dumps(changed).encode()


def _lines(right: bytes, random: Random) -> bytes:
    lines = right.splitlines()
    place = int(random.integers(len(lines)))
    doing = int(random.integers(5))
    if doing == 0:
        lines.insert(place, lines[int(random.integers(len(lines)))])
    elif doing == 1:
        lines[place] = lines[place][: len(lines[place]) // 2]
    else:
        lines[place] = _json(lines[place], random)
    return b"\n".join(lines) + (b"\n" if random.random() < 0.8 else b"")


def _artifact(right: bytes, random: Random) -> bytes:
    table = artifacts.table_of(right)
    length = int.from_bytes(right[:8], "little")
    manifest = json.loads(json.loads(right[8 : 8 + length])["__metadata__"]["manifest"])
    tensors = _tensors(right)
    doing = int(random.integers(10))
    if doing == 0:
        return artifacts.forge(tensors, manifest, table=artifacts.bad_table(table, random))
    if doing <= 2:
        names = list(tensors)
        how = artifacts.BAD_TENSORS[int(random.integers(len(artifacts.BAD_TENSORS)))]
        changed = artifacts.damaged(tensors, names[int(random.integers(len(names)))], how)
        return artifacts.forge(tensors if changed is None else changed, manifest)
    return artifacts.forge(tensors, artifacts.altered(manifest, random)[2])


def _toml(right: bytes, random: Random) -> bytes:
    """A suite with another value, or without a line."""
    lines = right.split(b"\n")
    places = [place for place, line in enumerate(lines) if b" = " in line]
    place = places[int(random.integers(len(places)))]
    values = (
        b"1",
        b"-1",
        b"nan",
        b"1e999",
        b'"x"',
        b"[]",
        b"[[1]]",
        b"{}",
        b"true",
        b'["a", 1]',
        b"1979-05-27",
    )
    key = lines[place].split(b" = ")[0]
    lines[place] = (
        b"" if random.random() < 0.1 else key + b" = " + values[int(random.integers(len(values)))]
    )
    return b"\n".join(lines)


def _pickle(right: bytes, random: Random) -> bytes:
    """A PyTorch file whose program for the object loader is another, in an archive that is
    right."""
    program = zipfile.ZipFile(io.BytesIO(right))
    file = io.BytesIO()
    calls = b"cos\nsystem\n(S'true'\ntR0", b"csocket\ncreate_connection\n((S'192.0.2.1'\nI9\nttR0"
    with zipfile.ZipFile(file, "w") as archive:
        for name in program.namelist():
            body = program.read(name)
            if name.endswith("data.pkl"):
                doing = int(random.integers(4))
                if doing < 2:
                    body = body[:2] + calls[doing] + body[2:]
                else:
                    body = (scribbled, truncated)[doing - 2](body, random)
            archive.writestr(name, body)
    return file.getvalue()


def _tensors(content: bytes) -> artifacts.State:
    import safetensors.torch

    return safetensors.torch.load(content)


_FORMS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "bytes": scribbled,
    "table": _table,
    "json": _json,
    "lines": _lines,
    "artifact": _artifact,
    "pickle": _pickle,
    "toml": _toml,
    "onnx": exported.hostile_onnx,
    "xml": exported.hostile_xml,
    "parquet": sources.hostile_parquet,
}


def readers(folder: Path) -> list[Reader]:
    """A reader of each kind, with all that it needs in `folder`.

    Computes: in a fork, where this process is to fork later.
    """
    from PIL import Image

    good = folder / "good"
    good.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(artifacts.parts(6)):
        Image.fromarray(pixels).save(good / f"{index}.png")
    bad = folder / "bad"
    bad.mkdir(exist_ok=True)
    Image.fromarray(artifacts.parts(1, seed=5)[0]).save(bad / "0.png")
    return [
        *_tables(folder, good),
        *_of_clusters(folder, good),
        *_settings(folder, good),
        *_kept(folder, good),
    ]


def _tables(folder: Path, good: Path) -> list[Reader]:
    rows = [f"good/{index}.png,0,{'train' if index < 4 else 'test'},," for index in range(6)]
    manifest = "path,label,split,defect,mask\n" + "\n".join([*rows, "bad/0.png,1,test,hole,"])
    table, artifact = folder / "table.csv", folder / "part.blemish"
    assert command("fit", "knn", good, "-o", artifact, *FIT)[0] == 0
    xrays = folder / "nih"
    (xrays / "images").mkdir(parents=True, exist_ok=True)
    for index in range(6):
        shutil.copy(good / f"{index}.png", xrays / "images" / f"{index:08d}_000.png")
    entries = "Image Index,Finding Labels,Patient ID,Patient Gender\n" + "\n".join(
        f"{index:08d}_000.png,{'No Finding' if index < 5 else 'Mass'},{index},M"
        for index in range(6)
    )
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000005_000.png,Mass,100,100,300,200\n"
    (xrays / "Data_Entry_2017.csv").write_text(entries)
    (xrays / "BBox_List_2017.csv").write_text(boxes)
    fit = ("fit", "knn", table, "-o", folder / "x.blemish", *FIT)
    back = ((xrays / "Data_Entry_2017.csv", entries), (xrays / "BBox_List_2017.csv", boxes))

    def restore() -> None:
        for file, text in back:
            file.write_text(text)

    check = ("evaluate", artifact, table, "--device", "cpu", "--precision", "fp32")
    reading = [
        ("table, checked", table, manifest, ("data", "check", table), None),
        ("table, fitted on", table, manifest, fit, None),
        ("table, evaluated on", table, manifest, check, None),
        ("NIH table", back[0][0], entries, ("data", "check", xrays), restore),
        ("NIH boxes", back[1][0], boxes, ("data", "check", xrays), restore),
    ]
    return [
        Reader(
            name=name,
            file=file,
            right=text.encode(),
            run=lambda line=line: command(*line),  # type: ignore[misc]
            form="table",
            ready=ready or (lambda: None),
        )
        for name, file, text, line, ready in reading
    ]


def _of_clusters(folder: Path, good: Path) -> list[Reader]:
    """What `predict --engine ray` is given."""
    artifact, pictures = folder / "part.blemish", sorted(good.glob("*.png"))
    ids = [f"{number:03d}" for number in range(len(pictures))]
    paths = [f"good/{picture.name}" for picture in pictures]
    rows = zip(ids, paths, "ABABAB", strict=True)
    text = "id,path,line\n" + "".join(f"{','.join(row)}\n" for row in rows)
    lines = {"id": ids, "path": paths, "line": [*range(len(ids))]}
    held = {"id": ids, "bytes": [picture.read_bytes() for picture in pictures]}
    pattern = folder / "pattern.txt"
    whole = {
        "cluster's table": (folder / "cluster.csv", text.encode(), "table"),
        "cluster's Parquet": (folder / "cluster.parquet", sources.parquet(**lines), "parquet"),
        "cluster's pictures": (folder / "held.parquet", sources.parquet(**held), "parquet"),
    }
    return [
        *(
            Reader(
                name=name, file=file, right=right, form=form,
                run=partial(sources.scored, artifact, str(file)),
            )
            for name, (file, right, form) in whole.items()
        ),
        Reader(
            name="cluster's pattern", file=pattern, right=b"good/[0-9]*.png", form="bytes",
            run=partial(sources.matched, artifact, folder, pattern),
        ),
    ]  # fmt: skip


def _settings(folder: Path, good: Path) -> list[Reader]:
    from importlib import resources

    from blemish.bench import suites

    config = folder / "settings.json"
    values = json.dumps(
        {"bank_size": 100, "layers": [2, 4], "image_size": 32, "top_fraction": 0.01}
    )
    fit = (
        "fit",
        "patchcore",
        good,
        "-o",
        folder / "x.blemish",
        "--config",
        config,
        *FIT[:4],
        *FIT[8:],
    )
    found = [_reader("settings (--config)", config, values.encode(), "json", *fit)]
    rows = folder / "rows.jsonl"
    kept = Path(__file__).parents[1] / "results"
    some = [
        line
        for name in ("memory", "guided")
        for line in (kept / f"{name}.jsonl").read_text().splitlines()[:3]
    ]
    text = ("\n".join(some) + "\n").encode()
    for more in ((), ("--efficiency",), ("--suite", "guided")):
        name = " ".join(("result rows", *more))
        found.append(_reader(name, rows, text, "lines", "bench", "table", rows, *more))
    suite = folder / "own.toml"
    toml = (resources.files(suites) / "atacnet.toml").read_bytes()
    rows.write_bytes(text)
    again = folder / "rows-again.jsonl"
    again.write_bytes(text)
    found.append(
        _reader("suite (TOML)", suite, toml, "toml", "bench", "table", again, "--suite", suite)
    )
    return found


def _kept(folder: Path, good: Path) -> list[Reader]:
    """What blemish writes and reads again."""
    artifact, out = folder / "part.blemish", folder / "out"
    predict = (
        "predict",
        artifact,
        good,
        "--output",
        out,
        "--resume",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    )
    assert command(*predict)[0] == 0
    rows, run = out / "predictions.jsonl", out / "run.json"
    right = rows.read_bytes(), run.read_bytes()

    def back() -> None:
        rows.write_bytes(right[0])
        run.write_bytes(right[1])

    encoder = folder / "encoder.safetensors"
    told = command("pretrain", good, "-o", encoder, *APMASK, *BRIEF)
    assert told[0] == 0, told
    weights = folder / "weights.pt"
    from blemish.backbones import build

    torch.save(build("test_vit", weights="random").model.state_dict(), weights)
    other = folder / "x.blemish"
    fitted = ("fit", "knn", good, "-o", other, "--backbone", "test_vit", *FIT[4:])
    trained = ("fit", "agpnet", good, "-o", folder / "y.blemish", *FIT, *BRIEF, "--resume")
    checkpoint = folder / "y.blemish.training"
    state = _checkpoint(trained, checkpoint)
    onnx, xml = exported.write(folder, artifact)
    scored = ("predict", onnx, good, "--threads", "1")
    return [
        _reader("exported file (.onnx)", onnx, onnx.read_bytes(), "onnx", *scored),
        _reader("exported file (.xml)", xml, xml.read_bytes(), "xml", "inspect", xml),
        _reader("predictions to go on from", rows, right[0], "lines", *predict, ready=back),
        _reader("run.json of predictions", run, right[1], "json", *predict, ready=back),
        _reader(
            "encoder", encoder, encoder.read_bytes(), "artifact", *fitted, "--weights", encoder
        ),
        _reader(
            "weights (PyTorch)",
            weights,
            weights.read_bytes(),
            "pickle",
            *fitted,
            "--weights",
            weights,
        ),
        _reader("checkpoint", checkpoint, state, "artifact", *trained),
    ]


def _reader(
    name: str,
    file: Path,
    right: bytes,
    form: str,
    *line: str | Path,
    ready: Callable[[], None] = lambda: None,
) -> Reader:
    return Reader(
        name=name, file=file, right=right, form=form, run=lambda: command(*line), ready=ready
    )


def _checkpoint(line: Sequence[str | Path], checkpoint: Path) -> bytes:
    """The checkpoint that a training keeps before its last step."""
    from blemish.training import checkpoint as checkpoints

    save, kept = checkpoints.save, []

    def keeping(*arguments: Any, **named: Any) -> None:
        save(*arguments, **named)
        kept.append(checkpoint.read_bytes())

    checkpoints.save = keeping
    try:
        told = command(*line)
        assert told[0] == 0, told
    finally:
        checkpoints.save = save
    return bytes(kept[-1])
