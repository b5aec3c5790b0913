"""Resizing agrees with torch bit for bit."""

import numpy as np
import pytest

from histocrypt.tissue.resize import resize


@pytest.mark.parametrize(("size", "side"), [(222, 64), (224, 128), (300, 32), (64, 65), (63, 224), (13, 2)])
def test_same_bytes_as_torch(size: int, side: int) -> None:
    import torch

    rng = np.random.default_rng(size)
    images = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    images[0], images[1] = 255, images[1] // 200 * 255
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    np.testing.assert_array_equal(resize(images, side), expected.permute(0, 2, 3, 1).numpy())


def test_same_size_is_left_alone() -> None:
    images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    assert resize(images, 8) is images
