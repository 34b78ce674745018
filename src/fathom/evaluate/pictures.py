"""Many images as one picture."""

from __future__ import annotations

import io

import numpy as np

GAP = 2  # pixels between images
ACROSS = 8


def grid(images: np.ndarray, across: int = ACROSS, zoom: int = 1) -> bytes:
    """Return images side by side, row by row, as a PNG.

    Args:
        images: [N, C, H, W] from 0 to 1, N at least one; C is 1 (grey), 3 (colour) or more, of which three are
            shown.
        across: images in a row.
        zoom: pixels that one becomes, across and down.
    """
    from PIL import Image

    pixels = (np.nan_to_num(np.asarray(images, dtype=np.float32)).clip(0, 1) * 255).round().astype(np.uint8)
    count, channels, height, width = pixels.shape
    pixels = pixels[:, :3] if channels >= 3 else pixels[:, :1].repeat(3, 1)  # [N, 3, H, W]
    pixels = pixels.repeat(zoom, 2).repeat(zoom, 3)
    height, width = height * zoom, width * zoom
    across = min(across, count)
    down = -(-count // across)
    whole = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP, 3), 255, np.uint8)
    for place, image in enumerate(pixels):
        top, left = (place // across) * (height + GAP), (place % across) * (width + GAP)
        whole[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
