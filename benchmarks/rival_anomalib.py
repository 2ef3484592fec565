"""The other side of rivals.py: anomalib, in a Python of its own. Nothing of blemish is in it.

Reads requests from stdin, one JSON object a line, and answers each with one on stdout; whatever the
libraries print goes to stderr. What is asked for: `fit` (or what a folder holds of an earlier one),
`time` (one pass of a batch of noise, in seconds) and `scores` of pictures.

Learning is anomalib's `Engine.fit`, export its `Engine.export` to OpenVINO with a fixed picture
size (batches stay open), running its `OpenVINOInferencer`, of which `time` takes the compiled model
alone. Two things are not as anomalib has them: `timm.create_model(pretrained=True)`, which fetches
weights, is replaced by one that builds the same model and loads all of its weights, strictly, from
a local file; and there is no validation, so scores are raw (thresholds and normalisation, which it
takes from the test pictures, change no order of scores).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.deploy import ExportType, OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.models import AnomalyDINO, Patchcore
from safetensors.torch import load_file
from torchvision.transforms.v2 import Resize

ENCODER = "vit_small_patch14_dinov2"
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def local_weights(path: str) -> None:
    """timm's models get their weights from a file, and never from a hub."""
    build = timm.create_model

    def create_model(name: str, pretrained: bool = False, **how: Any) -> Any:
        how.pop("pretrained_cfg", None)
        model = build(name, pretrained=False, **how)
        if pretrained:
            model.load_state_dict(load_file(path), strict=True)
        return model

    timm.create_model = create_model


class Rival:
    """A fitted model of anomalib, in torch and in OpenVINO."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.running: dict[str, Any] = {}

    def fit(
        self, *, model: str, size: int, layers: list[int], weights: str, good: str, folder: str
    ) -> dict[str, Any]:
        """Args: layers: blocks from 1, of PatchCore; AnomalyDINO takes the last one. good: a folder
        of pictures. folder: what keeps the fitted model and its export."""
        kept, self.size = Path(folder), size
        if not (kept / "told.json").exists():
            local_weights(weights)
            torch.manual_seed(0)
            began = time.perf_counter()
            fitted, engine = self._learned(model, layers, good, kept)
            seconds = time.perf_counter() - began
            side = (size, size)
            engine.export(fitted, ExportType.OPENVINO, export_root=kept, input_size=side)
            engine.export(fitted, ExportType.TORCH, export_root=kept)
            told = {
                "bank": list(fitted.model.memory_bank.shape),
                "fit_seconds": seconds,
                "file_mib": sum(each.stat().st_size for each in self._files(kept)) / 2**20,
            }
            (kept / "told.json").write_text(json.dumps(told))
        path = kept / "weights/torch/model.pt"
        self.module = torch.load(path, weights_only=False)["model"].eval()
        self.running = {"torch:fp32": self._torch}
        for precision, hint in _HINTS.items():
            self.running[f"openvino:{precision}"] = self._openvino(self._files(kept)[0], hint)
        return {
            **json.loads((kept / "told.json").read_text()),
            "licence": importlib.metadata.metadata("anomalib")["License"].split("\n")[1].strip(),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("anomalib", "torch", "timm", "openvino", "onnx")
            },
        }

    def _learned(self, model: str, layers: list[int], good: str, kept: Path) -> tuple[Any, Engine]:
        side = (self.size, self.size)
        if model == "patchcore":
            made = Patchcore(
                backbone=ENCODER,
                layers=[f"blocks.{layer - 1}" for layer in layers],
                pre_processor=Patchcore.configure_pre_processor(image_size=side),
            )
        else:
            made = AnomalyDINO(
                encoder_name=ENCODER,
                pre_processor=AnomalyDINO.configure_pre_processor(image_size=side),
            )
        data = Folder(
            **{"name": "good", "root": Path(good).parent, "normal_dir": Path(good).name},
            **{"test_split_mode": "none", "val_split_mode": "none"},
            **{"train_batch_size": 8, "num_workers": 0},
        )
        engine = Engine(default_root_dir=kept, accelerator="cpu", devices=1, limit_val_batches=0)
        engine.fit(made, datamodule=data)
        return made, engine

    @staticmethod
    def _files(kept: Path) -> tuple[Path, Path]:
        path = kept / "weights/openvino/model.xml"
        return path, path.with_suffix(".bin")

    def _torch(self, images: np.ndarray) -> Any:
        with torch.inference_mode():
            return self.module(torch.from_numpy(images)).pred_score.numpy()

    def _openvino(self, path: Path, hint: str) -> Any:
        how = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": hint}
        running = OpenVINOInferencer(path, device="CPU", config=how)
        name = running.input_blob.any_name
        return lambda images: running.model({name: images})["pred_score"]

    def time(self, *, engine: str, batch: int) -> float:
        shape = (batch, 3, self.size, self.size)
        images = np.random.default_rng(0).random(shape, dtype=np.float32)
        began = time.perf_counter()
        self.running[engine](images)
        return time.perf_counter() - began

    def scores(self, *, engine: str, pictures: list[str]) -> list[float]:
        """Each picture as its own pipeline of learning resizes it, which is with antialiasing; what
        lies in the exported graph is without, and leaves pictures of the size alone."""
        (resize,) = (
            each for each in self.module.pre_processor.transform.transforms
            if isinstance(each, Resize)
        )  # fmt: skip
        found = []
        for path in pictures:
            image = resize(read_image(path, as_tensor=True))[None].numpy()
            found.append(float(np.ravel(self.running[engine](image))[0]))
        return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    rival = Rival(threads)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"found": getattr(rival, asked.pop("do"))(**asked)}
        except Exception as error:  # whatever it is, the other side tells it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
