"""Images of every colour, depth, orientation and state become uint8 [C, H, W], or are set aside with a reason."""

import io
import struct
import zlib

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from fathom.core.errors import DataError
from fathom.data import PrepareConfig, Preprocess, infer
from fathom.data.image import UnreadableError, decode, load

RNG = np.random.default_rng(0)


def written(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def fit(values, folder=None, **options):
    dtype = pl.Binary if isinstance(values[0], bytes) else None
    frame = pl.DataFrame({"photo": pl.Series(values, dtype=dtype)})
    config = PrepareConfig(**options)
    return Preprocess.fit(frame, infer(frame, kinds={"photo": "image"}), folder=folder, config=config)


def test_pixels_are_kept_to_the_last_bit():
    image = noise(5, 8)
    assert (decode(written(image), 3, 5, 8) == np.asarray(image).transpose(2, 0, 1)).all()
    grey = noise(5, 8, 1)
    assert (decode(written(grey), 1, 5, 8)[0] == np.asarray(grey)).all()
    assert (decode(written(grey), 3, 5, 8) == np.asarray(grey)).all()


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (decode(written(clear), 3, 4, 4) == 255).all()
    assert (decode(written(Image.new("LA", (4, 4), (10, 0))), 1, 4, 4) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (decode(written(half), 3, 4, 4) == 127).all()
    keyed = written(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert (decode(keyed, 3, 4, 4) == 255).all()


def test_palettes_print_colours_and_single_bits_are_read():
    palette = Image.new("RGB", (4, 4), (200, 100, 50)).quantize(4)
    assert np.abs(decode(written(palette), 3, 4, 4)[:, 0, 0].astype(int) - (200, 100, 50)).max() <= 8
    printed = written(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = decode(printed, 3, 8, 8)[:, 4, 4]
    assert red > 240 and green < 15 and blue < 15
    assert (decode(written(Image.new("1", (4, 4), 1)), 1, 4, 4) == 255).all()


def test_sixteen_bits_become_eight():
    deep = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16))
    assert decode(written(deep), 1, 1, 4).tolist() == [[[0, 1, 128, 255]]]
    fractions = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32))
    assert decode(written(fractions, "TIFF"), 1, 1, 4).tolist() == [[[0, 127, 255, 0]]]


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_the_camera_s_orientation_is_applied(orientation, corner):
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(written(Image.fromarray(pixels), "JPEG", exif=exif, quality=100), 1, 16, 16)[0]
    assert found[corner] > 200 and (found > 200).sum() == 64


def test_the_first_frame_of_an_animation_stands_for_it():
    frames = [Image.new("L", (4, 4), 255), Image.new("L", (4, 4), 0)]
    animation = written(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(animation, 1, 4, 4) == 255).all()


def test_fitting_another_shape():
    wide = Image.fromarray(np.repeat(np.array([[0] * 8 + [255] * 8 + [0] * 8], dtype=np.uint8), 8, axis=0))  # 8 × 24
    assert (decode(written(wide), 1, 8, 8, "crop")[0] == 255).all()
    padded = decode(written(Image.new("L", (24, 8), 255)), 1, 24, 24, "pad")[0]
    assert (padded[8:16] == 255).all() and (padded[:8] == 0).all() and (padded[16:] == 0).all()
    assert (decode(written(Image.new("L", (24, 8), 9)), 1, 5, 6, "stretch") == 9).all()


def bomb(width, height):
    """A PNG that claims to be far larger than its file."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"hello", "not an image of a known format"),
        (POSTSCRIPT, "not an image of a known format"),
        (bomb(9000, 9000), "9000 × 9000 pixels"),
        (bomb(60_000, 60_000), "limit"),
        (written(noise(32, 32))[:400], "damaged"),
        (written(noise(32, 32), "JPEG")[:300], "damaged"),
    ],
)
def test_hostile_and_damaged_files_are_refused(data, reason):
    with pytest.raises(UnreadableError, match=reason):
        decode(data, 3, 8, 8)


def test_paths_start_at_the_folder_and_can_be_forbidden(tmp_path):
    (tmp_path / "a.png").write_bytes(b"A")
    (tmp_path / "deep").mkdir()
    assert load("a.png", tmp_path) == load({"bytes": None, "path": "a.png"}, tmp_path) == b"A"
    assert load(str(tmp_path / "a.png"), tmp_path / "deep") == load("../a.png", tmp_path / "deep") == b"A"
    assert load({"bytes": b"B", "path": "a.png"}, tmp_path) == b"B"
    with pytest.raises(UnreadableError, match="only the bytes"):
        load("a.png", tmp_path, paths=False)
    for value, reason in [
        ("b.png", "there is no file 'b.png'"),
        ("deep", "there is no file"),
        ("a\0b", "a"),
        ("x" * 5000, "x"),
        (None, "missing"),
        ("", "missing"),
        (b"", "missing"),
        ({"bytes": None, "path": None}, "missing"),
        (3, "not int"),
    ]:
        with pytest.raises(UnreadableError, match=reason):
            load(value, tmp_path)


def test_images_of_one_size_keep_it_and_their_colour():
    preprocess, prepared = fit([written(noise(12, 20)) for _ in range(5)])
    assert preprocess.spec.images[0].shape == (3, 12, 20)
    assert prepared.store.columns["image:photo"].is_contiguous()


def test_images_of_many_sizes_become_squares_of_the_median_side():
    sizes = [(20, 40), (24, 24), (90, 30)]
    assert fit([written(noise(*size)) for size in sizes])[0].spec.images[0].shape == (3, 24, 24)
    assert fit([written(noise(*size)) for size in sizes], image_size=10)[0].spec.images[0].shape == (3, 10, 10)
    assert fit([written(noise(300, 400), "JPEG")] * 2)[0].spec.images[0].shape == (3, 224, 224)


def test_grey_is_kept_grey_even_where_it_is_stored_as_colour():
    grey = np.asarray(noise(16, 16, 1))
    stored = Image.fromarray(np.stack([grey] * 3, 2))
    assert fit([written(stored), written(Image.fromarray(grey))])[0].spec.images[0].shape == (1, 16, 16)
    assert fit([written(stored), written(noise(16, 16))])[0].spec.images[0].shape == (3, 16, 16)
    assert fit([written(stored)], image_colour="rgb")[0].spec.images[0].shape == (3, 16, 16)


def test_unreadable_images_leave_the_others_in_order(tmp_path):
    images = [noise(6, 6) for _ in range(40)]
    names = [f"{i}.png" for i in range(40)]
    for name, image in zip(names, images, strict=True):
        (tmp_path / name).write_bytes(written(image))
    (tmp_path / "3.png").unlink()
    (tmp_path / "20.png").write_bytes(b"damaged")
    preprocess, prepared = fit(names, tmp_path)
    assert prepared.rows.tolist() == [i for i in range(40) if i not in (3, 20)]
    assert [(one.row, one.reason) for one in prepared.set_aside] == [
        (4, "there is no file '3.png'"),
        (21, "not an image of a known format"),
    ]
    pixels = prepared.store.columns["image:photo"]
    for place, row in enumerate(prepared.rows):
        assert (pixels[place].numpy() == np.asarray(images[row]).transpose(2, 0, 1)).all()
    again = preprocess.transform(pl.DataFrame({"photo": names}), folder=tmp_path)
    assert torch.equal(again.store.columns["image:photo"], pixels)
    refused = preprocess.transform(pl.DataFrame({"photo": names}), folder=tmp_path, paths=False)
    assert len(refused.store) == 0 and len(refused.set_aside) == 40


def test_two_image_columns_keep_the_rows_that_both_can_give():
    good, bad = [written(noise(4, 4)) for _ in range(6)], b"bad"
    frame = pl.DataFrame({"a": [*good[:5], bad], "b": [bad, *good[1:]]})
    prepared = Preprocess.fit(frame, infer(frame, kinds={"a": "image", "b": "image"}))[1]
    assert prepared.rows.tolist() == [1, 2, 3, 4]
    assert torch.equal(prepared.store.columns["image:a"], prepared.store.columns["image:b"])


def test_a_column_without_one_readable_image_is_refused():
    with pytest.raises(DataError, match="No image of column 'photo' can be read: not an image"):
        fit([b"a", b"b"])


def test_colour_is_found_wherever_it_stands_in_a_sorted_table():
    grey, colour = written(noise(4, 4, 1)), written(noise(4, 4))
    assert fit([grey] * 1200 + [colour] * 100)[0].spec.images[0].shape == (3, 4, 4)
    assert fit([grey] * 1300 + [colour])[0].spec.images[0].shape == (1, 4, 4)
