"""Random views against PyTorch's own resizing, numpy's formulas and counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from fathom.layers.resize import blur_matrix, resize_matrix
from fathom.layers.views import Views

STILL = {"crop": (1.0, 1.0), "shape": 1.0, "flip": 0.0, "jitter": 0.0, "grey": 0.0}


def photos(rows: int = 6, channels: int = 3, height: int = 9, width: int = 14) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(256, (rows, channels, height, width), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize(("start", "length", "out"), [(0, 14, 14), (3, 8, 20), (2, 11, 5), (0, 14, 3), (13, 1, 4)])
def test_a_stretch_is_resized_as_pytorch_does(start, length, out):
    row = torch.rand(1, 1, 14, dtype=torch.float64)
    matrix = resize_matrix(14, out, torch.tensor([float(start)]).double(), torch.tensor([float(length)]).double())
    part = row[:, :, start : start + length]
    expected = F.interpolate(part[:, :, None], (1, out), mode="bilinear", antialias=True)[:, :, 0]
    torch.testing.assert_close(matrix @ row[0, 0], expected[0], rtol=1e-9, atol=1e-9)


def test_a_blur_is_the_gaussian_formula():
    spread = 1.3
    place = np.arange(7)
    weight = np.exp(-((place[:, None] - place) ** 2) / (2 * spread**2))
    weight /= weight.sum(1, keepdims=True)
    np.testing.assert_allclose(blur_matrix(7, torch.tensor([spread], dtype=torch.float64))[0], weight, rtol=1e-12)


def test_nothing_varied_is_the_image():
    torch.testing.assert_close(Views(**STILL)(photos()), photos().float(), rtol=1e-5, atol=1e-3)


def test_a_mirrored_view_is_the_mirror_image():
    found = Views(**{**STILL, "flip": 1.0})(photos())
    torch.testing.assert_close(found, photos().flip(3).float(), rtol=1e-5, atol=1e-3)


def test_each_image_draws_for_itself():
    torch.manual_seed(0)
    same = photos(1).expand(400, -1, -1, -1)
    found = Views(**{**STILL, "flip": 0.25})(same)
    mirrored = (found - same.flip(3).float()).abs().amax((1, 2, 3)) < 1e-2
    assert 70 < int(mirrored.sum()) < 130
    assert len(Views()(same).flatten(1).unique(dim=0)) > 390


def test_crops_have_the_areas_that_were_asked_for():
    """A picture of its own coordinates tells what was cut out of it."""
    torch.manual_seed(0)
    ramp = torch.arange(100.0)
    place = torch.stack([ramp[:, None].expand(100, 100), ramp[None].expand(100, 100)])[None].expand(2000, -1, -1, -1)
    view = Views(**{**STILL, "crop": (0.2, 0.6), "shape": 4 / 3})(place, (50, 50))
    height = (view[:, 0, -1, 0] - view[:, 0, 0, 0]) / 49 * 50 / 100
    width = (view[:, 1, 0, -1] - view[:, 1, 0, 0]) / 49 * 50 / 100
    area = height * width
    assert 0.19 < area.min() < 0.22 and 0.58 < area.max() < 0.61
    assert area.mean() == pytest.approx(0.4, abs=0.02)
    ratio = width / height
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.38
    assert view.min() >= 0 and view.max() <= 99


def test_a_turned_view_is_scipys():
    torch.manual_seed(7)
    views = Views(**{**STILL, "turn": 40.0, "shear": 0.5})(photos().double())
    torch.manual_seed(7)
    for _ in range(4):
        torch.rand(6, dtype=torch.float64)  # area, shape, two places
    angles, shears = (torch.rand(6, dtype=torch.float64) * 2 - 1 for _ in range(2))
    middle = np.array([(9 - 1) / 2, (14 - 1) / 2])
    for view, photo, angle, shear in zip(
        views, photos(), (angles * np.radians(40)).tolist(), (shears * 0.5).tolist(), strict=True
    ):
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, 0], [shear, 1]])  # of places (row, column)
        for got, channel in zip(view, photo, strict=True):
            expected = ndimage.affine_transform(
                channel.double().numpy(), turned, middle - turned @ middle, order=1, mode="nearest"
            )
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_jitter_is_brightness_then_contrast_then_saturation():
    torch.manual_seed(5)
    views = Views(**{**STILL, "jitter": 0.6, "jitter_chance": 1.0})
    found = views(photos())
    torch.manual_seed(5)
    torch.rand(6), torch.rand(6), torch.rand(6), torch.rand(6)  # area, shape, two places
    torch.rand(6, 1, 1, 1)  # who is varied
    factors = [(0.4 + 1.2 * torch.rand(6)).double().numpy()[:, None, None, None] for _ in range(3)]
    image = np.clip(photos().numpy() * factors[0], 0, 255)
    weights = np.array([0.299, 0.587, 0.114])[None, :, None, None]
    mean = (image * weights).sum(1, keepdims=True).mean((2, 3), keepdims=True)
    image = np.clip(mean + factors[1] * (image - mean), 0, 255)
    grey = (image * weights).sum(1, keepdims=True)
    image = np.clip(grey + factors[2] * (image - grey), 0, 255)
    np.testing.assert_allclose(found.numpy(), image, atol=1e-2)


def test_grey_has_no_colour_and_a_hole_is_grey():
    torch.manual_seed(0)
    grey = Views(**{**STILL, "grey": 1.0})(photos())
    assert (grey[:, :1] - grey).abs().max() < 1e-3
    holes = Views(**{**STILL, "erase": 0.5})(torch.zeros(300, 1, 20, 20, dtype=torch.uint8)) > 0
    assert holes.sum((1, 2, 3)).max() == 100 and holes.sum((1, 2, 3)).min() >= 1


def test_grey_images_and_other_sizes():
    assert Views(blur=1.0)(photos(channels=1), (5, 4)).shape == (6, 1, 5, 4)
    assert Views(turn=9.0)(photos(0)).shape == (0, 3, 9, 14)


def test_the_seed_decides_and_mixed_precision_changes_nothing():
    views = Views(blur=0.5, erase=0.2)
    torch.manual_seed(1)
    first = views(photos())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        second = views(photos())
    assert first.dtype == torch.float32 and torch.equal(first, second)
    assert first.min() >= 0 and first.max() <= 255.01
