"""CLIP tokens against the arithmetic written out, and its preprocessing against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.models.clip import CLIP_MEAN, CLIP_STD, ClipTokens

SIDE, PATCH, LENGTH, WIDTH, HEADS, PROJECTION = 32, 8, 12, 24, 4, 20
WORDS = ["a", "red", "blue", "circle", "square", "above", "of"]
PAD, START, UNKNOWN, END = range(4)
CAPTIONS = ["a red circle", "a blue square above a red circle", "square", "A Blue whale"]


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<unk>", "<end>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=LENGTH,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models with random weights, in the hub's layout."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 2,
    }
    shape |= {"projection_dim": PROJECTION}
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **shape))
    text_config = CLIPTextConfig(
        vocab_size=len(WORDS) + 4,
        max_position_embeddings=LENGTH,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        **shape,
    )
    text = CLIPTextModelWithProjection(text_config)
    root = tmp_path_factory.mktemp("clip")
    with torch.no_grad():
        for model in (vision, text):
            for (
                p
            ) in model.parameters():  # biases and norms too; transformers starts most of them from constants
                p.add_(torch.randn_like(p) * 0.2)
    vision.save_pretrained(root / "image_encoder")
    text.save_pretrained(root / "text_encoder")
    make_tokenizer().save_pretrained(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipTokens:
    return ClipTokens.load(folder)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    return np.clip(coarse.repeat(8, 1).repeat(8, 2) + rng.integers(-20, 20, (3, 48, 48, 3)), 0, 255).astype(
        np.uint8
    )


# ------------------------------------------------- the transformer, written out in float64


def weights(folder: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    return {k.removeprefix(prefix): v.double() for k, v in state.items()}


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer(w: dict[str, Tensor], x: Tensor, *, causal: bool) -> Tensor:
    n, tokens, _ = x.shape
    for i in range(2):
        name = f"encoder.layers.{i}"
        y = norm(w, f"{name}.layer_norm1", x)
        q, k, v = (
            linear(w, f"{name}.self_attn.{part}_proj", y).reshape(n, tokens, HEADS, -1).transpose(1, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, WIDTH)
        x = x + linear(w, f"{name}.self_attn.out_proj", y)
        y = linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.layer_norm2", x))
        x = x + linear(w, f"{name}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    return x


def literal_vision_tokens(folder: Path, pixels: Tensor) -> Tensor:
    w = weights(folder / "image_encoder", "vision_model.")
    patches = F.conv2d(pixels.double(), w["embeddings.patch_embedding.weight"], stride=PATCH)
    start = w["embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([start, patches.flatten(2).transpose(1, 2)], 1) + w["embeddings.position_embedding.weight"]
    x = transformer(w, norm(w, "pre_layrnorm", x), causal=False)
    tokens = norm(w, "post_layernorm", x) @ w["visual_projection.weight"].T
    return torch.stack([image / image[0].norm() for image in tokens])


def literal_text_tokens(folder: Path, ids: list[int]) -> Tensor:
    w = weights(folder / "text_encoder", "text_model.")
    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"]
    x = norm(w, "final_layer_norm", transformer(w, x[None], causal=True))[0]
    tokens = x @ w["text_projection.weight"].T
    return tokens / tokens[ids.index(END)].norm()


def literal_ids(caption: str) -> list[int]:
    words = [WORDS.index(w) + 4 if w in WORDS else UNKNOWN for w in caption.lower().split()][: LENGTH - 2]
    ids = [START, *words, END]
    return ids + [PAD] * (LENGTH - len(ids))


def close(actual: np.ndarray, expected: Tensor) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# ------------------------------------------------- tokens


def test_vision_tokens(clip: ClipTokens, folder: Path, images: np.ndarray) -> None:
    tokens = clip.vision_tokens(images)
    assert tokens.shape == (3, *clip.vision_shape) == (3, (SIDE // PATCH) ** 2 + 1, PROJECTION)
    close(tokens, literal_vision_tokens(folder, clip.pixels(images)))
    np.testing.assert_allclose(np.linalg.norm(tokens[:, 0], axis=-1), 1, rtol=1e-5)
    # the other tokens keep their own length
    assert np.linalg.norm(tokens[:, 1:], axis=-1).std() > 0.01


def test_text_tokens(clip: ClipTokens, folder: Path) -> None:
    ids = [literal_ids(c) for c in CAPTIONS]
    assert clip.token_ids(CAPTIONS).tolist() == ids
    tokens = clip.text_tokens(CAPTIONS)
    assert tokens.shape == (4, *clip.text_shape) == (4, LENGTH, PROJECTION)
    close(tokens, torch.stack([literal_text_tokens(folder, i) for i in ids]))
    ends = [i.index(END) for i in ids]
    np.testing.assert_allclose(np.linalg.norm(tokens[range(4), ends], axis=-1), 1, rtol=1e-5)


def test_long_captions_are_cut_and_keep_their_end(clip: ClipTokens, folder: Path) -> None:
    caption = " ".join(["red", "circle"] * 20)
    ids = clip.token_ids([caption]).tolist()
    assert ids == [literal_ids(caption)]
    assert len(ids[0]) == LENGTH
    assert ids[0][-1] == END
    close(clip.text_tokens([caption]), literal_text_tokens(folder, ids[0])[None])


def test_captions_of_an_image_are_averaged(clip: ClipTokens) -> None:
    mean = clip.mean_text_tokens([CAPTIONS[:3], CAPTIONS[3:], ["of"]])
    single = [clip.text_tokens([c])[0].astype(np.float64) for c in [*CAPTIONS, "of"]]
    expected = np.stack([np.mean(single[:3], 0), single[3], single[4]])
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
    assert mean.dtype == np.float32


@pytest.mark.parametrize("captions", [[["a"], []], [[], ["a"]], [[]]])
def test_an_image_without_captions_is_refused(clip: ClipTokens, captions: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="without a caption"):
        clip.mean_text_tokens(captions)


def test_unconditional_tokens(clip: ClipTokens, folder: Path) -> None:
    close(clip.unconditional_text(), literal_text_tokens(folder, [START, END, *[PAD] * (LENGTH - 2)])[None])
    grey = [(0.5 - m) / s for m, s in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    pixels = torch.tensor(grey).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    nothing = clip.unconditional_vision()
    close(nothing, literal_vision_tokens(folder, pixels))
    # and very nearly what an 8-bit grey image gives
    nearly = clip.vision_tokens(np.full((1, SIDE, SIDE, 3), 128, np.uint8))
    np.testing.assert_allclose(nothing, nearly, atol=0.05 * np.abs(nearly).max())


def test_image_embedding_is_the_cls_token_before_its_normalisation(
    clip: ClipTokens, images: np.ndarray
) -> None:
    embeddings = clip.image_embeddings(images)
    assert embeddings.shape == (3, PROJECTION)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings / lengths, clip.vision_tokens(images)[:, 0], rtol=1e-4, atol=1e-5)
    assert lengths.std() > 0


def test_an_image_does_not_depend_on_its_batch(clip: ClipTokens, images: np.ndarray) -> None:
    alone = np.concatenate([clip.vision_tokens(images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(clip.vision_tokens(images), alone, atol=1e-5)
    alone = np.concatenate([clip.text_tokens([c]) for c in CAPTIONS])
    np.testing.assert_allclose(clip.text_tokens(CAPTIONS), alone, atol=1e-5)


# ------------------------------------------------- preprocessing


def processor(side: int) -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.mark.parametrize(
    "size",
    [
        (32, 32),
        (48, 48),
        (17, 17),
        (33, 61),
        (61, 33),
        (31, 32),
        (32, 31),
        (32, 77),
        (49, 98),
        (147, 98),
        (97, 131),
    ],
    ids=str,
)
def test_pixels_are_those_of_transformers(clip: ClipTokens, size: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    expected = processor(SIDE)(images=list(image), return_tensors="np")["pixel_values"]
    assert expected.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(clip.pixels(image).numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(98, 147), (206, 103), (161, 322)], ids=str)
def test_pixels_of_sides_whose_ratio_floats_cannot_hold(size: tuple[int, int]) -> None:
    """64 * 147 / 98 is 96, but 147 * (64 / 98) is a hair less; cut off, the image would be squeezed."""

    class Config:
        image_size = 64

    class Vision:
        config = Config()

    image = np.random.default_rng(4).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    expected = processor(64)(images=list(image), return_tensors="np")["pixel_values"]
    own = ClipTokens(Vision(), None, None).pixels(image).numpy()
    np.testing.assert_allclose(own, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_only_uint8_is_taken(clip: ClipTokens, images: np.ndarray, dtype: type) -> None:
    for method in (clip.pixels, clip.vision_tokens, clip.image_embeddings):
        with pytest.raises(TypeError, match="uint8"):
            method((images / 255).astype(dtype))


def test_the_double_rescaling_trap(clip: ClipTokens, folder: Path, images: np.ndarray) -> None:
    """A float image that is rescaled a second time makes an almost black picture, and other tokens.

    Should the first half of this test fail after an upgrade, transformers has fixed its side.
    """
    at_size = images[:, :SIDE, :SIDE]
    floats = list(at_size.astype(np.float32) / 255)
    make = processor(SIDE)
    trapped = torch.from_numpy(make(images=floats, do_resize=False, return_tensors="np")["pixel_values"])
    as_wanted = make(images=floats, do_resize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    black = -torch.tensor(CLIP_MEAN).view(3, 1, 1) / std
    assert (trapped - black).abs().max() < 1.001 / 255 / std.min()
    np.testing.assert_allclose(as_wanted, clip.pixels(at_size).numpy(), atol=2e-6)

    good = clip.vision_tokens(at_size)
    bad = literal_vision_tokens(folder, trapped).numpy()
    right = literal_vision_tokens(folder, torch.from_numpy(as_wanted)).numpy()
    assert np.abs(right - good).max() < 1e-4
    apart = np.linalg.norm((bad - good).reshape(3, -1), axis=1) / np.linalg.norm(good.reshape(3, -1), axis=1)
    assert apart.min() > 0.2
    # all pictures look the same to it
    assert np.abs(bad - bad[:1]).max() < 0.1 * np.abs(good - good[:1]).max()
