"""The ViT surface: tokens as timm's, attention as softmax(qkᵀ/√d), patches that are dropped are
really absent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import BackboneSpec, VitBackbone, WeightsInfo, build
from blemish.errors import ConfigError

PATCH, DIM, DEPTH, HEADS = 8, 48, 3, 3
LAYERS = (1, 2, 3)
SIZE: dict[str, Any] = {
    **{"img_size": 32, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS},
    **{"dynamic_img_size": True, "num_classes": 0},
}
DINOV3: dict[str, Any] = {  # the settings of timm's vit_small_patch16_dinov3
    **{"qkv_bias": False, "init_values": 1e-5, "use_abs_pos_emb": False, "use_fc_norm": False},
    **{"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True},
    **{"use_rot_pos_emb": True, "num_reg_tokens": 4, "norm_layer": partial(LayerNorm, eps=1e-5)},
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: VisionTransformer(**SIZE),
    "registers": lambda: VisionTransformer(reg_tokens=4, no_embed_class=True, **SIZE),
    "registers_with_positions": lambda: VisionTransformer(reg_tokens=2, **SIZE),
    "clip": lambda: VisionTransformer(
        pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5), **SIZE
    ),
    "qk_norm": lambda: VisionTransformer(qk_norm=True, init_values=0.1, **SIZE),
    "dinov3": lambda: Eva(**DINOV3, **SIZE),
    "eva02": lambda: Eva(
        use_rot_pos_emb=True, ref_feat_shape=(4, 4), qkv_fused=False, swiglu_mlp=True, **SIZE
    ),
    "no_cls": lambda: VisionTransformer(class_token=False, global_pool="avg", **SIZE),
}
WITH_CLS = [name for name in MODELS if name != "no_cls"]
ROTARY = ("dinov3", "eva02")


def backbone_of(kind: str, *, antialias: bool = True) -> VitBackbone:
    """A backbone with weights large enough for attention that is far from uniform and blocks that
    change much.
    """
    generator = torch.Generator().manual_seed(len(kind))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and ("qkv" in name or "q_proj" in name or "k_proj" in name):
                parameter.normal_(0, 0.3, generator=generator)
            elif "gamma" in name:
                parameter.fill_(0.5)
            elif parameter.ndim >= 2:
                parameter.normal_(0, 0.15, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    what: Any = {"name": kind, "timm_name": kind, "kind": "vit", "licence": "", "about": ""}
    spec = BackboneSpec(**what, layers=(1, 3), antialias=antialias)
    backbone = VitBackbone(spec, model, WeightsInfo(source="random", sha256="", licence="none"))
    return backbone.eval().requires_grad_(False)


def images(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(height * width)
    return torch.randn(batch, 3, height, width, generator=random)


def block_inputs(backbone: VitBackbone, call: Callable[[], object]) -> dict[int, Tensor]:
    """Layer -> what entered that block during `call`; blocks that were not run are absent."""
    seen: dict[int, Tensor] = {}

    def recorder(layer: int) -> Callable[[nn.Module, Any], None]:
        def record(_module: nn.Module, inputs: Any) -> None:
            seen[layer] = inputs[0].clone()

        return record

    blocks: Any = backbone.model.blocks
    handles = [
        block.register_forward_pre_hook(recorder(layer))
        for layer, block in enumerate(blocks, start=1)
    ]
    call()
    for handle in handles:
        handle.remove()
    return seen


def hooks_on(backbone: VitBackbone) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules()
    )


def dinov3_angles(height: int, width: int, head_dim: int) -> Tensor:
    """RoPE of DINOv3: coordinates in [-1, 1], periods 100^(2j / (d/2)), first the rows' angles,
    then the columns'.
    """
    periods = [100 ** (2 * j / (head_dim / 2)) for j in range(head_dim // 4)]
    rows = []
    for y in range(height):
        for x in range(width):
            at_y, at_x = 2 * (y + 0.5) / height - 1, 2 * (x + 0.5) / width - 1
            half = [2 * math.pi * place / p for place in (at_y, at_x) for p in periods]
            rows.append(half + half)
    return torch.tensor(rows, dtype=torch.float64)


def rotated(kind: str, backbone: VitBackbone, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch queries or keys B L N d, turned by their place; float64."""
    if kind == "dinov3":
        angles = dinov3_angles(*grid, x.shape[-1])
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    model: Any = backbone.model
    sin, cos = model.rope.get_embed(shape=grid).double().chunk(2, dim=-1)
    turned = torch.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * cos[:, 0::2] - x[..., 1::2] * sin[:, 0::2]
    turned[..., 1::2] = x[..., 1::2] * cos[:, 1::2] + x[..., 0::2] * sin[:, 1::2]
    return turned


def attention_oracle(
    kind: str, backbone: VitBackbone, layer: int, entered: Tensor, grid: tuple[int, int]
) -> Tensor:
    """softmax(qkᵀ/√d) of a block from its own weights and input, in float64: B L T T."""
    block: Any = copy.deepcopy(backbone.model.blocks[layer - 1]).double()
    attn, x = block.attn, block.norm1(entered.double())
    batch, count = x.shape[:2]
    if getattr(attn, "qkv", None) is not None:
        weight, bias = attn.qkv.weight, attn.qkv.bias
        if bias is None and getattr(attn, "q_bias", None) is not None:
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        q, k, _ = F.linear(x, weight, bias).chunk(3, dim=-1)
    else:
        q, k = attn.q_proj(x), attn.k_proj(x)
    q, k = (part.reshape(batch, count, HEADS, DIM // HEADS).transpose(1, 2) for part in (q, k))
    q, k = attn.q_norm(q), attn.k_norm(k)
    if kind in ROTARY:
        cut = backbone.prefix
        q = torch.cat([q[:, :, :cut], rotated(kind, backbone, q[:, :, cut:], grid)], dim=2)
        k = torch.cat([k[:, :, :cut], rotated(kind, backbone, k[:, :, cut:], grid)], dim=2)
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(DIM // HEADS), dim=-1)


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
@pytest.mark.parametrize("kind", WITH_CLS)
def test_the_cls_row_is_the_softmax(kind: str, size: tuple[int, int]) -> None:
    backbone = backbone_of(kind)
    found: list[Any] = []
    entered = block_inputs(
        backbone,
        lambda: found.append(
            backbone(images(*size), LAYERS, attention=LAYERS, full_attention=LAYERS)
        ),
    )
    got, full = found[0].attention, found[0].full_attention
    assert set(got) == set(full) == set(LAYERS)
    for layer in LAYERS:
        grid = (size[0] // PATCH, size[1] // PATCH)
        oracle = attention_oracle(kind, backbone, layer, entered[layer], grid)
        row = oracle[:, :, 0, backbone.prefix :]
        assert got[layer].shape == (2, HEADS, size[0] * size[1] // PATCH**2)
        assert got[layer].dtype == torch.float32
        assert (got[layer] - row).abs().max() < 1e-5
        assert row.std(dim=-1).min() > 1e-4  # not so flat that anything would pass
        assert (full[layer] - oracle).abs().max() < 1e-5


@pytest.mark.parametrize("layers", [(3,), (1, 2, 3)])
@pytest.mark.parametrize("kind", WITH_CLS)
def test_every_head_and_layer_guides_alike(kind: str, layers: tuple[int, ...]) -> None:
    """However much of its attention a head gives to [CLS] and the registers."""
    backbone, batch = backbone_of(kind), images(40, 24)
    full = backbone(batch, LAYERS, full_attention=LAYERS).full_attention
    expected = torch.zeros(2, 15, dtype=torch.float64)
    shares = []
    for picture in range(2):
        for layer in layers:
            for head in full[layer][picture].double():
                row = head[0, backbone.prefix :]
                shares.append(float(row.sum()))
                expected[picture] += row / row.sum() / HEADS / len(layers)
    assert max(shares) > 1.002 * min(shares)  # or raw rows would do as well
    got = backbone.guidance(batch, layers)
    assert got.shape == (2, 5, 3)
    torch.testing.assert_close(got.flatten(1).double(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (40, 24), (64, 48)])
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_timms(kind: str, size: tuple[int, int]) -> None:
    backbone, batch = backbone_of(kind), images(*size)
    model: Any = backbone.model
    options = {"norm": False, "output_fmt": "NLC", "return_prefix_tokens": True}
    expected = model.forward_intermediates(
        batch, indices=[0, 1, 2], intermediates_only=True, **options
    )
    got = backbone(batch, LAYERS)
    assert got.grids == ((size[0] // PATCH, size[1] // PATCH),) * 3
    for index in range(DEPTH):
        patches, prefix = expected[index] if kind != "no_cls" else (expected[index], torch.empty(0))
        torch.testing.assert_close(got.tokens[index], patches, rtol=1e-5, atol=1e-5)
        if kind != "no_cls":
            torch.testing.assert_close(got.cls[index], prefix[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.norm(got.tokens[-1]), model.norm(got.tokens[-1]))
    assert (got.cls == ()) == (kind == "no_cls")


def test_positions_resized_without_antialiasing() -> None:
    smooth, plain = backbone_of("plain"), backbone_of("plain", antialias=False)
    table: Any = smooth.model.pos_embed
    for height, width, same in [(32, 32, True), (64, 64, False), (16, 16, False)]:
        batch = images(height, width)
        first = block_inputs(plain, partial(plain, batch, (1,)))[1]
        patches = plain.model.patch_embed(batch).flatten(1, 2)
        square = table[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        grid = (height // 8, width // 8)
        naive = F.interpolate(square, size=grid, mode="bicubic", antialias=False)
        naive = naive.flatten(2).transpose(1, 2).expand(2, -1, -1)
        torch.testing.assert_close(first[:, 1:] - patches, naive)
        other = block_inputs(smooth, partial(smooth, batch, (1,)))[1]
        assert torch.allclose(first, other, atol=1e-6) == same


def naive_pass(kind: str, backbone: VitBackbone, batch: Tensor, keep: Tensor) -> list[list[Tensor]]:
    """Tokens T D after each block, for each picture on its own: positions first, then the kept
    patches alone.
    """
    model: Any = backbone.model
    per_image = []
    for image, kept in zip(batch, keep, strict=True):
        grid = (image.shape[1] // PATCH, image.shape[2] // PATCH)
        x = model.patch_embed(image[None]).reshape(1, -1, DIM)
        prefix = [p for p in (model.cls_token, getattr(model, "reg_token", None)) if p is not None]
        if model.pos_embed is not None:
            on_prefix = 0 if model.no_embed_class else backbone.prefix
            positions = resample_abs_pos_embed(model.pos_embed, grid, num_prefix_tokens=on_prefix)
            x = x + positions[:, on_prefix:]
            if on_prefix:
                prefix = [torch.cat(prefix, dim=1) + positions[:, :on_prefix]]
        x = torch.stack([x[0, index] for index in kept.tolist()])[None]
        x = model.norm_pre(torch.cat([*prefix, x], dim=1))
        rope = model.rope.get_embed(shape=grid)[kept] if kind in ROTARY else None
        after = []
        for block in model.blocks:
            x = block(x) if rope is None else block(x, rope=rope)
            after.append(x[0])
        per_image.append(after)
    return per_image


@pytest.mark.parametrize("kind", MODELS)
def test_dropped_patches_are_absent(kind: str) -> None:
    backbone, batch = backbone_of(kind), images(40, 24, batch=3)
    # Another set for each picture.
    keep = torch.tensor([[0, 3, 7, 14], [1, 2, 8, 9], [4, 5, 6, 13]])
    features = backbone(batch, LAYERS, full_attention=LAYERS, keep=keep)
    count = backbone.prefix + 4
    for layer in LAYERS:
        assert features.full_attention[layer].shape == (3, HEADS, count, count)
    assert torch.equal(features.kept, keep)
    oracle = naive_pass(kind, backbone, batch, keep)
    for one in range(3):
        for index in range(DEPTH):
            patches = oracle[one][index][backbone.prefix :]
            torch.testing.assert_close(features.tokens[index][one], patches, rtol=1e-4, atol=1e-4)
            if kind != "no_cls":
                first = oracle[one][index][0]
                torch.testing.assert_close(features.cls[index][one], first, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="dropped"):
        features.maps()


@pytest.mark.parametrize("kind", ["plain", "registers", "dinov3", "eva02"])
def test_the_cls_row_over_kept_patches(kind: str) -> None:
    backbone, batch = backbone_of(kind), images()
    keep = torch.tensor([[1, 5, 6], [0, 2, 15]])
    features = backbone(batch, attention=LAYERS, full_attention=LAYERS, keep=keep)
    full = features.full_attention[3][:, :, 0, backbone.prefix :]
    assert features.attention[3].shape == (2, HEADS, 3)
    torch.testing.assert_close(features.attention[3], full, rtol=0, atol=1e-6)
    alone = [backbone(batch[[i]], attention=LAYERS, keep=keep[[i]]).attention[3] for i in range(2)]
    torch.testing.assert_close(features.attention[3], torch.cat(alone), rtol=1e-4, atol=1e-6)


def test_blocks_after_the_last_one_wanted_are_not_run() -> None:
    backbone, batch = backbone_of("registers"), images()
    calls: list[tuple[dict[str, Any], set[int]]] = [
        ({"layers": (2, 1)}, {1, 2}),
        ({"layers": (1,), "attention": (2,)}, {1, 2}),
        ({"layers": (1,), "full_attention": (3,)}, {1, 2, 3}),
        ({}, {1, 2, 3}),  # the default layers are 1 and 3
    ]
    for options, run in calls:
        assert set(block_inputs(backbone, partial(backbone, batch, **options))) == run


def test_layers_come_in_the_order_asked_for() -> None:
    backbone, batch = backbone_of("plain"), images()
    forth, back = backbone(batch, (1, 3)), backbone(batch, (3, 1))
    for one, other in zip(forth.tokens, back.tokens[::-1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(forth.tokens[1], backbone(batch).tokens[1])


@pytest.mark.parametrize("kind", WITH_CLS)
def test_reduced_precision_gives_float32(kind: str) -> None:
    backbone, batch = backbone_of(kind), images()
    exact = backbone(batch, LAYERS, attention=LAYERS)
    backbone.to(torch.bfloat16)
    rough = backbone(batch, LAYERS, attention=LAYERS, full_attention=(2,))
    maps = (*rough.attention.values(), *rough.full_attention.values())
    everything = (*rough.tokens, *rough.cls, *maps, backbone.norm(rough.tokens[0]))
    assert {tensor.dtype for tensor in everything} == {torch.float32}
    for one, other in zip(exact.tokens, rough.tokens, strict=True):
        assert F.cosine_similarity(one, other, dim=-1).min() > 0.99
    for layer in LAYERS:
        assert (exact.attention[layer] - rough.attention[layer]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 3, 33, 32), "8 divides; got 33×32, nearest 32×32"),
        ((2, 3, 32, 12), "8 divides; got 32×12, nearest 32×16"),
        ((2, 3, 1, 3), "nearest 8×8"),
        ((3, 32, 32), "B 3 H W"),
        ((2, 1, 32, 32), "B 3 H W"),
        ((2, 4, 32, 32), "B 3 H W"),
    ],
)
def test_images_of_another_shape(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        backbone_of("plain")(torch.zeros(shape))


@pytest.mark.parametrize(
    "options", [{"layers": (0,)}, {"layers": (1, 4)}, {"attention": (4,)}, {"full_attention": (9,)}]
)
def test_a_layer_that_does_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"layer \d does not exist: plain has layers 1 to 3"):
        backbone_of("plain")(images(), **options)


def test_no_cls_no_cls_row() -> None:
    backbone = backbone_of("no_cls")
    with pytest.raises(ConfigError, match=r"no \[CLS\]"):
        backbone(images(), attention=(1,))
    assert backbone(images(), full_attention=(1,)).full_attention[1].shape == (2, HEADS, 16, 16)


def test_a_model_of_fixed_size_is_refused() -> None:
    plain = backbone_of("plain")
    model = VisionTransformer(**{**SIZE, "dynamic_img_size": False})
    backbone = VitBackbone(plain.spec, model, plain.info)
    with pytest.raises(ConfigError, match="dynamic"):
        backbone(images())


def test_no_hook_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch = backbone_of("dinov3"), images()
    before = hooks_on(backbone)
    seen: list[int] = []

    def fail(*_args: Any, **_options: Any) -> Tensor:
        seen.append(hooks_on(backbone))
        raise RuntimeError("out of memory")

    blocks: Any = backbone.model.blocks
    monkeypatch.setattr(blocks[1], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        backbone(batch, attention=LAYERS)
    assert seen[0] > before  # there were hooks while it ran
    assert hooks_on(backbone) == before


@pytest.mark.parametrize("name", ["test_vit", "dinov3_vits16"])
def test_positions_that_are_kept_change_nothing(name: str) -> None:
    backbone = build(name, weights="random")
    assert isinstance(backbone, VitBackbone)
    images = torch.randn(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    expected = backbone(images, (1,)).tokens[0]
    backbone.placed = {}
    for _ in range(2):
        assert torch.equal(backbone(images, (1,)).tokens[0], expected)
    assert set(backbone.placed) == {(3, 5)}
