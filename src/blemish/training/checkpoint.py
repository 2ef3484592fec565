"""The state of an interrupted training: one file like an artifact, written whole, read without
running anything.

It holds what is learned, the optimiser's state and, in the header, how far the training has come
and what it is the training of. A frozen backbone is left out: the one who resumes has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blemish import artifact
from blemish.data.stream import Found
from blemish.errors import ArtifactError, ConfigError, OutputError
from blemish.methods.learner import Learner
from blemish.training.records import CHECKPOINT, CheckpointManifest, read_checkpoint_manifest

_LEARNED, _OPTIMIZER = "method.", "optimizer."  # what the names of tensors begin with


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointManifest):
    """A training that can be resumed: where its file lies, and the state of the method and of the
    optimiser by name."""

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)

    def restore(self, method: Learner, optimizer: torch.optim.Optimizer) -> None:
        """Put the method and a fresh optimiser where they were. Raises: ArtifactError where they do
        not fit.
        """
        learned: dict[str, Any] = {}
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*self.tensors.items(), *self.scalars.items()):
            if name.startswith(_LEARNED):
                learned[name.removeprefix(_LEARNED)] = value
            else:
                number, _, key = name.removeprefix(_OPTIMIZER).partition(".")
                state.setdefault(int(number), {})[key] = value
        try:
            put_back(method, learned)
            _check_state(state, optimizer)
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.path}: does not fit this {method.name} ({error}); remove it to start anew"
            ) from error


def save(
    path: Path, method: Learner, optimizer: torch.optim.Optimizer, manifest: CheckpointManifest
) -> None:
    """Write a checkpoint, whole or not at all. Raises: OutputError."""
    tensors = {_LEARNED + name: tensor for name, tensor in learned_state(method).items()}
    scalars: dict[str, Any] = {}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            into = tensors if isinstance(value, Tensor) else scalars
            into[f"{_OPTIMIZER}{number}.{key}"] = value
    # Copies, as safetensors refuses tensors that share memory.
    content = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    artifact.write(path, content, {CHECKPOINT: {**manifest.to_dict(), "scalars": scalars}})


def learned_state(method: Learner) -> dict[str, Tensor]:
    """The method's state, without its backbone where that is frozen."""
    left_out = "backbone." if is_frozen(method.backbone) else "\0"
    return {
        name: tensor
        for name, tensor in method.state_dict().items()
        if not name.startswith(left_out)
    }


def put_back(method: Learner, state: Mapping[str, Tensor]) -> None:
    """Take back what `learned_state` gave. Raises: ValueError, RuntimeError where the tensors do
    not fit.
    """
    differing = sorted(state.keys() ^ learned_state(method).keys())
    if differing:
        raise ValueError(
            f"other tensors: {', '.join(differing[:3])}{' …' if len(differing) > 3 else ''}"
        )
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or not bool(tensor.isfinite().all()):
            raise ValueError(f"{_LEARNED}{name} holds NaN or infinite values")
    method.load_state_dict(state, strict=False)  # without the frozen backbone


def _check_state(state: Mapping[int, Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """Raises: ValueError where an optimiser's state is not of its parameters, as its next step
    would need it.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    needed = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else set()
    if optimizer.defaults.get("amsgrad"):
        needed.add("max_exp_avg_sq")
    for number, values in state.items():  # of one that was never changed there is none
        if not 0 <= number < len(parameters) or not needed <= values.keys():
            raise ValueError(f"{_OPTIMIZER}{number} is not the state of a parameter that learns")
        for key, value in values.items():
            if not isinstance(value, Tensor):
                continue
            if value.ndim and value.shape != parameters[number].shape:
                raise ValueError(f"{_OPTIMIZER}{number}.{key} has the shape {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{_OPTIMIZER}{number}.{key} holds NaN or infinite values")


def is_frozen(module: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def find(path: Path | None, identity: Mapping[str, Any], *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; None where the training starts from the beginning.

    Raises: OutputError where there is one and `resume` is False; ConfigError where it is of another
        training, or where `resume` is asked for without a path; ArtifactError where it is damaged.
    """
    if path is None:
        if resume:
            raise ConfigError("resume: the path of a checkpoint is needed")
        return None
    if not resume:
        check_free(path)
    if not path.exists():
        return None
    found = _read(path)
    differing = list(_differences(found.identity, json.loads(json.dumps(identity))))
    if differing:
        raise ConfigError(
            f"{path}: is the checkpoint of another training, it differs in "
            f"{', '.join(differing)}; train as before, or remove the file to start anew"
        )
    return found


def check_free(path: Path) -> None:
    """Raises: OutputError where a checkpoint lies."""
    if path.exists():
        raise OutputError(
            f"{path}: an interrupted training lies there; --resume goes on with it, or remove the "
            "file to start anew"
        )


def fingerprint(found: Found) -> str:
    """Of the pictures by position, the broken ones too."""
    content = json.dumps([sorted(found.digests.items()), sorted(found.failures)])
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path) -> Checkpoint:
    try:
        tensors, manifest = artifact.read(path)
        if CHECKPOINT not in manifest:
            raise ConfigError(
                f"{path}: is a detector, not the checkpoint of a training; choose another place"
            )
        header = read_checkpoint_manifest(path, manifest)
        # Copies: those read lie anywhere in the bytes of the file, fresh ones where vector
        # instructions like them.
        copies = {name: part.clone() for name, part in tensors.items()}
        return Checkpoint(path=path, tensors=copies, **vars(header))
    except ArtifactError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ArtifactError(
            f"{path}: nothing can be resumed from it; remove it to start anew ({reason})"
        ) from error


def _differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """The names (a.b for b in a) of what differs between two JSON values, with the values where
    they are short.
    """
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted(there.keys() | now.keys()):
            yield from _differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif there != now:
        values = f"{json.dumps(there)} there, {json.dumps(now)} now"
        yield f"{name} ({values})" if len(values) <= 60 else name
