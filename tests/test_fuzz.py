"""Whatever is handed over, damaged or forged: a named error or the right result, and no request.

The same generators as in `benchmarks/robustness.py`, which tries many times more, and whole
processes that hang, crash or are killed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import made_graphs
import numpy as np
import pytest
import torch
from fuzzing import artifacts, damage, graphs, pictures, tallies, texts
from fuzzing.texts import FIT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish import artifact
from blemish.engines import files
from blemish.engines.onnx import OnnxEngine
from blemish.errors import BlemishError
from blemish.images import decode

SEEDS = st.integers(0, 2**32 - 1)
ORIGINALS = [
    (form, kind, data)
    for form, maker in pictures.MAKERS.items()
    for kind, data in maker(np.random.default_rng(0)).items()
]
_watching: list[str] | None = None


class Held(dict[Any, Any]):
    """What a fixture gives to hypothesis, which would print it otherwise."""

    def __repr__(self) -> str:
        return f"{len(self)} of them"


def tries(count: int) -> Any:
    """Settings of hypothesis: the same attempts each time."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    how = {"derandomize": True, "deadline": None, "database": None}
    return settings(max_examples=count, suppress_health_check=checks, **how)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is not None and event in ("socket.connect", "socket.getaddrinfo", *CODE):
        _watching.append(f"{event} {arguments[1:]!r}")
        raise OSError("the tests refuse the network, and programs")


CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
sys.addaudithook(_refuse)  # a hook stays; it does something only while it is asked to


@pytest.fixture(autouse=True)
def requests() -> Iterator[None]:
    """No test of these may reach for a network or start a program, and be it that it is refused."""
    global _watching
    _watching = []
    yield
    found, _watching = _watching, None
    assert found == []


@pytest.fixture(scope="module")
def original() -> Held:
    """The pixels and notes of each picture as it is made."""
    decoded = {(form, kind): decode(data) for form, kind, data in ORIGINALS}
    return Held({key: (picture.as_uint8(), picture.notes) for key, picture in decoded.items()})


# --- Pictures
# --------------------------------------------------------------------------------------


@tries(600)
@given(st.integers(0, len(ORIGINALS) - 1), st.sampled_from(sorted(damage.MUTATIONS)), SEEDS)
def test_damaged_pictures(original: Held, which: int, way: str, seed: int) -> None:
    form, kind, data = ORIGINALS[which]
    changed = damage.MUTATIONS[way](data, np.random.default_rng(seed))
    found = damage.tried(changed, *original[form, kind])
    assert found["verdict"] != "bug", found["why"]
    if changed != data and damage.checked_as(form, kind) in damage.TOLD.get(way, ()):
        assert found["verdict"] != "wrong", f"{form} {kind} {way}"


@pytest.mark.parametrize(("form", "kind", "data"), ORIGINALS, ids=lambda part: str(part)[:20])
def test_cut_anywhere(original: Held, form: str, kind: str, data: bytes) -> None:
    places = np.linspace(1, len(data) - 1, 12).astype(int)
    for place in places:
        found = damage.tried(data[:place], *original[form, kind])
        assert found["verdict"] in ("refused", "right"), f"{place} of {len(data)}: {found}"


def test_what_is_told_is_told_by_the_pixels(original: Held) -> None:
    # The oracle itself: it must not call right what is not, nor an honest picture wrong.
    pixels = original["PNG", "RGB 8"][0]
    assert damage.compared(pixels, pixels) == "right"
    one = pixels.copy()
    one[3, 4] += 100
    assert damage.compared(one, pixels) == "changed"
    half = pixels.copy()
    half[: len(half) // 2] = 0
    assert damage.compared(half, pixels) == "wrong"
    assert damage.compared(pixels[1:], pixels) == "wrong"


def test_every_mutation_changes_something() -> None:
    for form, kind, data in ORIGINALS:
        for way, change in damage.MUTATIONS.items():
            changed = [change(data, np.random.default_rng(seed)) != data for seed in range(3)]
            lossless = form == "WebP" and way in ("enlarged", "shrunk")  # they have no such field
            assert any(changed) or lossless, f"{form} {kind} {way}"


# --- Artifacts
# -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """Of every method: tensors, manifest, scores of a picture, that picture, a place to write."""
    folder = tmp_path_factory.mktemp("detectors")
    picture = folder / "part.png"
    Image.fromarray(artifacts.parts(1, seed=77)[0]).save(picture)
    threads = torch.get_num_threads()
    made = artifacts.write_detectors(folder)
    torch.set_num_threads(threads)
    found = Held()
    for name, path in made.items():
        out = artifacts.command("predict", path, picture, "--json", *FIT[-4:])[1]
        found[name] = (*artifact.read(path), artifacts.scores_of(out), picture, folder / "forged")
    return found


def judged(detector: Any, content: bytes, *, inspected: bool = False) -> dict[str, Any]:
    _, _, known, picture, place = detector
    place.write_bytes(content)
    return artifacts.judged(place, picture, known, inspected=inspected)


def test_a_forgery_that_changes_nothing_is_used(detectors: Held) -> None:
    for name, detector in detectors.items():
        assert judged(detector, artifacts.forge(*detector[:2]))["verdict"] == "right", name


def test_impossible_values_are_refused(detectors: Held) -> None:
    cases = [
        (name, field, value, manifest)
        for name, (_, told, *_) in detectors.items()
        for field, value, manifest in artifacts.impossible(told)
    ]
    order = np.random.default_rng(0).permutation(len(cases))
    seen: set[tuple[str, str]] = set()
    for name, field, value, manifest in [cases[place] for place in order]:
        if (field, repr(value)) in seen:
            continue  # once, with any of the methods
        seen.add((field, repr(value)))
        state = detectors[name][0]
        found = judged(detectors[name], artifacts.forge(state, manifest))
        assert found["verdict"] == "refused", f"{name}: {field} = {value!r}: {found}"


def test_no_artifact_reaches_for_a_network(detectors: Held) -> None:
    names = [name for name in artifacts.IMPOSSIBLE["backbone.spec.timm_name"] if ":" in str(name)]
    for which, name in enumerate(names):
        method = list(detectors)[which % len(detectors)]
        state, told, *_ = detectors[method]
        manifest = artifacts.with_value(told, ("backbone", "spec", "timm_name"), name)
        found = judged(detectors[method], artifacts.forge(state, manifest))
        assert found["verdict"] == "refused", name
    # The fixture `requests` sees to the rest: that nothing was asked, be it in vain.


def test_impossible_tensors_are_refused(detectors: Held) -> None:
    random = np.random.default_rng(0)
    for name, (state, told, *_) in detectors.items():
        own = [each for each in state if not each.startswith("backbone.")]
        for tensor in [*own[:12], next(each for each in state if each.startswith("backbone."))]:
            how = artifacts.BAD_TENSORS[int(random.integers(len(artifacts.BAD_TENSORS)))]
            changed = artifacts.damaged(state, tensor, how)
            if changed is None:
                continue
            found = judged(detectors[name], artifacts.forge(changed, told))
            assert found["verdict"] == "refused", f"{name}: {tensor} {how}: {found}"


@tries(32)
@given(st.integers(0, 1000), SEEDS)
def test_artifacts_with_any_field_changed(detectors: Held, which: int, seed: int) -> None:
    name = list(detectors)[which % len(detectors)]
    state, told, *_ = detectors[name]
    field, value, manifest = artifacts.altered(told, np.random.default_rng(seed))
    found = judged(detectors[name], artifacts.forge(state, manifest), inspected=True)
    assert found["verdict"] in ("refused", "right", "other"), (
        f"{name}: {field} = {str(value)[:60]}: {found}"
    )


@tries(20)
@given(SEEDS)
def test_tables_of_tensors_that_lie(detectors: Held, seed: int) -> None:
    detector = detectors["knn"]
    table = artifacts.table_of(artifacts.forge(*detector[:2]))
    bad = artifacts.bad_table(table, np.random.default_rng(seed))
    assert judged(detector, artifacts.forge(*detector[:2], table=bad))["verdict"] == "refused"


def test_a_manifest_of_brackets(detectors: Held) -> None:
    nested = artifacts.forge(detectors["knn"][0], artifacts.nested())
    assert judged(detectors["knn"], nested)["verdict"] == "refused"


# --- Tables, settings, rows, checkpoints, weights
# --------------------------------------------------


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return Held(enumerate(texts.readers(tmp_path_factory.mktemp("texts"))))


def test_all_that_is_read_is_read_when_it_is_right(readers: Held) -> None:
    for reader in readers.values():
        assert reader.attempt(reader.right)["verdict"] == "accepted", reader.name


@tries(60)
@given(st.integers(0, 1000), SEEDS)
def test_hostile_files(readers: Held, which: int, seed: int) -> None:
    reader = readers[which % len(readers)]
    found = reader.attempt(texts.hostile(reader.right, reader.form, np.random.default_rng(seed)))
    assert found["verdict"] in ("refused", "accepted"), f"{reader.name}: {found}"


# --- Forged graphs
# ----------------------------------------------------------------------------------------------


@tries(150)
@given(SEEDS)
def test_forged_graphs(tmp_path: Path, seed: int) -> None:
    # In ONNX Runtime, and of what asks for little; the rest is for `benchmarks/robustness.py`.
    right = graphs.forged(made_graphs.onnx_bytes(), np.random.default_rng(seed), modest=True)
    try:
        path = files.write(tmp_path / "part.onnx", "onnx", right, made_graphs.manifest())
    except ValueError:
        return  # no fields to its end
    with suppress(BlemishError):
        found = OnnxEngine(files.read(path), threads=1).run(made_graphs.batch(2))
        assert found.map.shape == (2, made_graphs.SIDE, made_graphs.SIDE)


# --- The harness itself
# ----------------------------------------------------------------------------


def test_what_is_counted() -> None:
    tally = tallies.Tally("pictures", "PNG", "flip")
    tally.add("refused")
    tally.add("wrong", "of one")
    tally.note("lost", "a row of the same one")
    tally.measured({"peak": 3 * 2**20, "seconds": 0.5, "requests": ["network: example"]})
    row = tally.row()
    assert (tally.tried, tally.faults) == (2, 3)
    assert (row["wrong"], row["lost"], row["request"], row["peak_mib"]) == (1, 1, 1, 3.0)
    excused = tallies.Tally("pictures", "BMP", "flip", told=False)
    excused.add("wrong")
    assert (excused.faults, excused.examples) == (0, [])
