"""What a frozen encoder knows of defects, before and after pre-training: one JSON line per data
set.

    python benchmarks/probe.py bottle magnetic_tile --backbone focus_vits14 --output probe.jsonl
    python benchmarks/probe.py bottle --backbone focus_vits14 --weights encoder.safetensors

A data set is a path, or a name that `blemish bench` knows, found in BLEMISH_DATA. Every picture is
described, at 224² and in fp32, by its [CLS] token and the mean of its patch tokens, side by side,
both of the last layer and after the final norm. On these features:

`knn`: image AUROC of the cosine distance to the nearest good training picture.
`linear`: AUROC of a logistic regression (standardised features, C = 1) that tells good from
defective test pictures, each scored by the fold of five that did not see it.
`linear_kind`: balanced accuracy of one that tells the kinds of defect apart in the same way; only
kinds of five pictures or more, and null where there are not two.

Both are means over `--seeds` draws of the folds, with the standard deviation (of a sample) beside
them. They use the test labels: they say what is in the features, not how well a detector does. Runs
on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from blemish.backbones import build
from blemish.backbones.vit import VitBackbone
from blemish.bench import conditions
from blemish.bench import plan as planning
from blemish.bench.results import append
from blemish.compute import pick_device
from blemish.data import layouts
from blemish.data.stream import PictureStream, fingerprint
from blemish.data.transforms import Preprocessing
from blemish.errors import BlemishError, ConfigError, DataError
from blemish.files import end_last_row
from blemish.metrics.ranking import auroc
from blemish.types import ANOMALOUS, NORMAL, Sample

SIDE, BATCH, FOLDS = 224, 16, 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA")
    parser.add_argument("--backbone", required=True, help="a ViT with a [CLS] token")
    parser.add_argument(
        "--weights",
        help="a file, such as `blemish pretrain` writes; else the backbone's own weights",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="how many draws of the folds (default: 3)"
    )
    parser.add_argument("--output", type=Path, help="a JSONL file that the rows are appended to")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds: at least 1 is needed, got {options.seeds}")
    if options.output:
        end_last_row(options.output)
    backbone = build(options.backbone, weights=options.weights).to(pick_device("auto"))
    if not isinstance(backbone, VitBackbone) or backbone.model.cls_token is None:
        raise ConfigError(
            f"--backbone: a ViT with a [CLS] token is needed, which {backbone.spec.name} is not"
        )
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in planning.data_sets(
            options.data, root=None, scratch=Path(scratch)
        ).items():
            row = {"what": "probe", "data": name, **probe(path, backbone, range(options.seeds))}
            print(json.dumps(row), flush=True)
            if options.output:
                append(options.output, row)


def probe(path: Path, backbone: VitBackbone, seeds: Sequence[int]) -> dict[str, Any]:
    """The row of a data set."""
    started = time.perf_counter()
    date, (commit, dirty) = datetime.now(UTC).isoformat(timespec="seconds"), conditions.checkout()
    dataset = layouts.read(path)
    good, known, fingerprint = described(
        [one for one in dataset.train() if one.label == NORMAL], backbone
    )
    test, seen, _ = described([one for one in dataset.test() if one.label is not None], backbone)
    labels = np.array([one.label for one in test])
    counts = Counter(one.defect for one in test if one.label == ANOMALOUS)
    if not good or min(np.sum(labels == NORMAL), np.sum(labels == ANOMALOUS)) < FOLDS:
        raise DataError(
            f"{path}: a probe needs good training pictures, and {FOLDS} good and defective test "
            "pictures"
        )

    kinds = {kind: count for kind, count in sorted(counts.items()) if kind and count >= FOLDS}
    rows = [row for row, one in enumerate(test) if one.label == ANOMALOUS and one.defect in kinds]
    kind = np.array([test[row].defect for row in rows])
    linear = [auroc(out_of_fold(seen, labels, seed, "decision_function"), labels) for seed in seeds]
    linear_kind = [
        balanced_accuracy_score(kind, out_of_fold(seen[rows], kind, seed, "predict"))
        for seed in seeds
        if len(kinds) > 1
    ]
    height, width = backbone.round_size(SIDE, SIDE)
    return {
        "date": date,
        "commit": commit,
        "dirty": dirty,
        "backbone": backbone.spec.name,
        "weights": backbone.info.to_dict(),
        "resolution": [height, width],
        "counts": {
            "train": len(good),
            "test_normal": int(np.sum(labels == NORMAL)),
            "test_anomalous": int(np.sum(labels == ANOMALOUS)),
        },
        "fingerprint": fingerprint,
        "knn": auroc(distances(seen, known), labels),
        **mean_and_std("linear", linear),
        **mean_and_std("linear_kind", linear_kind),
        "kinds": kinds,
        "seeds": len(seeds),
        "seconds": round(time.perf_counter() - started, 1),
        "device": conditions.hardware(backbone.device),
        "precision": "fp32",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@torch.inference_mode()
def described(
    samples: Sequence[Sample], backbone: VitBackbone
) -> tuple[list[Sample], np.ndarray, str]:
    """The samples that can be read, their features N 2D, and the fingerprint of their content."""
    height, width = backbone.round_size(SIDE, SIDE)
    preprocessing = Preprocessing(height=height, width=width, mean=backbone.mean, std=backbone.std)
    stream = PictureStream([one.path for one in samples], preprocessing, batch_size=BATCH)
    device = backbone.device
    made = [np.empty((0, 2 * backbone.dim), dtype=np.float32)]
    reading = stream.on(device)
    for batch in reading:
        last = backbone(batch.images, (backbone.depth,))
        tokens = [backbone.norm(last.cls[0]), backbone.norm(last.tokens[0]).mean(1)]
        made.append(torch.cat(tokens, dim=1).cpu().numpy())
    found = reading.found
    for _, failure in sorted(found.failures.items()):
        print(f"left out: {failure.source}: {failure.reason}", file=sys.stderr)
    readable = [one for index, one in enumerate(samples) if index not in found.failures]
    return readable, np.concatenate(made), fingerprint(found.digests.values())


def distances(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Of each of the features, the cosine distance to the nearest of those known."""
    return 1 - (normalize(features) @ normalize(known).T).max(1)


def out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    seed: int,
    wanted: Literal["decision_function", "predict"],
) -> np.ndarray:
    """What a logistic regression that was fitted on the other folds says of each picture."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
    return cross_val_predict(model, features, labels, cv=folds, method=wanted)


def mean_and_std(name: str, values: Iterable[float]) -> dict[str, float | None]:
    """Of a sample; None where there are too few values."""
    drawn = list(values)
    return {
        name: statistics.mean(drawn) if drawn else None,
        f"{name}_std": statistics.stdev(drawn) if len(drawn) > 1 else None,
    }


if __name__ == "__main__":
    try:
        main()
    except BlemishError as error:
        sys.exit(f"error: {error}")
