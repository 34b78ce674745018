"""Augmentation: what may change, what must not, and that the seed decides."""

import pytest
import torch
from torch import Tensor

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats
from fathom.data import augment
from fathom.data.augment import AugmentConfig

NOTHING = AugmentConfig(shift=0.0, flip="no", erase=0.0)


def spec(*classes: str, shape: tuple[int, ...] = (1, 28, 28)) -> DataSpec:
    names = classes or ("Bag", "Coat")
    return DataSpec(
        inputs=(
            Field(name="photo", kind="image", shape=shape, stats=Stats(mean=(90.0,) * shape[0])),
            Field(name="size", kind="number"),
        ),
        targets=(Field(name="label", kind="category", classes=names),),
        rows=100,
    )


def numbered(size: int, *shape: int) -> Tensor:
    """Images whose pixels can be told apart: [B, C, H, W]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 256, (size, *shape), dtype=torch.uint8, generator=generator)


def change(images: Tensor, config: AugmentConfig, seed: int = 0, classes: tuple[str, ...] = ()) -> Tensor:
    varied = augment.build(spec(*classes, shape=tuple(images.shape[1:])), config)
    assert varied is not None
    torch.manual_seed(seed)
    return varied({"image:photo": images})["image:photo"]


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """One image [C, H, W] shifted by slicing, black where nothing is known."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    result[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result


def test_every_image_is_shifted_by_whole_pixels_of_its_own() -> None:
    images = numbered(200, 3, 20, 12)
    found = change(images, AugmentConfig(shift=0.1, flip="no", border="black"))  # by up to 2 rows and 1 column
    seen = set()
    for before, after in zip(images, found, strict=True):
        [shift] = [(d, r) for d in range(-3, 4) for r in range(-3, 4) if torch.equal(moved(before, d, r), after)]
        seen.add(shift)
    assert seen == {(d, r) for d in range(-2, 3) for r in range(-1, 2)}  # each shift occurs, none goes farther


@pytest.mark.parametrize("border", ["reflect", "edge"])
def test_borders_are_filled_from_the_image(border: str) -> None:
    image = torch.arange(1, 11, dtype=torch.uint8).expand(1, 1, 10, 10)
    rows = change(image.expand(64, -1, -1, -1), AugmentConfig(shift=0.2, flip="no", border=border))[:, 0, 0].tolist()
    two_left = {"reflect": [3, 4, 5, 6, 7, 8, 9, 10, 9, 8], "edge": [3, 4, 5, 6, 7, 8, 9, 10, 10, 10]}[border]
    two_right = {"reflect": [3, 2, 1, 2, 3, 4, 5, 6, 7, 8], "edge": [1, 1, 1, 2, 3, 4, 5, 6, 7, 8]}[border]
    assert two_left in rows
    assert two_right in rows
    assert list(range(1, 11)) in rows


def test_about_half_of_the_images_are_mirrored() -> None:
    images = numbered(1000, 2, 8, 9)
    found = change(images, AugmentConfig(shift=0.0, flip="yes"))
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    kept = (found == images).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 430 < int(mirrored.sum()) < 570


def test_a_square_is_erased_to_the_mean() -> None:
    images = numbered(300, 3, 20, 20)
    found = change(images, AugmentConfig(shift=0.0, flip="no", erase=0.25))
    for before, after in zip(images, found, strict=True):
        holed = (after == 90).all(0)  # [H, W]; the chance that a kept pixel looks like that is 256⁻³
        rows, columns = holed.any(1).nonzero().flatten(), holed.any(0).nonzero().flatten()
        assert torch.equal(before[:, ~holed], after[:, ~holed])
        assert int(holed.sum()) == len(rows) * len(columns) <= 25
        assert int(rows[-1] - rows[0]) < 5
    whole = ((found == 90).all(1).flatten(1).sum(1) == 25).float().mean()
    assert whole > 0.3  # the others stand over an edge


def test_the_seed_decides() -> None:
    images = numbered(64, 1, 28, 28)
    config = AugmentConfig(flip="yes", erase=0.3)
    assert torch.equal(change(images, config, seed=1), change(images, config, seed=1))
    assert not torch.equal(change(images, config, seed=1), change(images, config, seed=2))


def test_everything_else_is_left_alone() -> None:
    images = numbered(16, 1, 28, 28)
    before = images.clone()
    batch = {"image:photo": images, "number": torch.randn(16, 1), "target:label": torch.arange(16) % 2}
    varied = augment.build(spec(), AugmentConfig(flip="yes", erase=0.5))
    assert varied is not None
    found = varied(batch)
    assert list(found) == list(batch)
    assert found["number"] is batch["number"]
    assert found["target:label"] is batch["target:label"]
    assert torch.equal(images, before)  # the store's own memory is never written to
    assert found["image:photo"].dtype == torch.uint8
    assert found["image:photo"].shape == images.shape
    assert not torch.equal(found["image:photo"], images)


def test_each_image_column_varies_by_itself() -> None:
    two = DataSpec(inputs=tuple(Field(name=n, kind="image", shape=(1, 9, 9)) for n in ("front", "back")))
    varied = augment.build(two, AugmentConfig(shift=0.3))
    assert varied is not None
    images = numbered(8, 1, 9, 9)
    found = varied({"image:front": images, "image:back": images})
    assert not torch.equal(found["image:front"], found["image:back"])


def test_nothing_to_vary_is_none() -> None:
    assert augment.build(spec(), NOTHING) is None
    table = DataSpec(inputs=(Field(name="size", kind="number"),))
    assert augment.build(table, AugmentConfig()) is None
    tiny = spec(shape=(1, 2, 2))
    assert augment.build(tiny, AugmentConfig(flip="no")) is None  # 0.08 of two pixels is none


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 1, 7)])
@pytest.mark.parametrize("border", ["black", "reflect", "edge"])
def test_the_smallest_images_and_the_largest_changes(shape: tuple[int, int, int], border: str) -> None:
    images = numbered(4, *shape)
    found = change(images, AugmentConfig(shift=0.5, flip="yes", erase=1.0, border=border))
    assert found.shape == images.shape
    assert len(change(images[:1], AugmentConfig(shift=0.5, flip="yes", border=border))) == 1


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("T-shirt/top", "Trouser", "Ankle boot"), True),
        (("cat", "dog", "horse_2"), True),
        (("猫", "犬 いぬ", "馬"), False),  # single letters, as far as a name can tell
        (("0", "1", "2"), False),
        (("three", "seven"), False),
        (("A", "B", "C"), False),
        (("arrow left", "arrow right", "stop"), False),
        (("straight", "turn-left"), False),
        ((), False),
    ],
)
def test_mirroring_is_chosen_by_the_names_of_the_classes(classes: tuple[str, ...], expected: bool) -> None:
    targets = (Field(name="label", kind="category", classes=classes),)
    assert augment.mirrors_alike(targets) is expected


def test_mirroring_is_not_chosen_for_numbers_or_without_a_target() -> None:
    assert not augment.mirrors_alike((Field(name="angle", kind="number"),))
    assert not augment.mirrors_alike(())


def test_auto_and_no_obey() -> None:
    images = numbered(50, 1, 6, 6)
    still = AugmentConfig(shift=0.0)
    assert not torch.equal(change(images, still, classes=("cat", "dog")), images)
    assert augment.build(spec("0", "1", shape=(1, 6, 6)), still) is None
    assert augment.build(spec("cat", "dog"), AugmentConfig(shift=0.0, flip="no")) is None


@pytest.mark.parametrize("options", [{"shift": 0.6}, {"shift": -0.1}, {"erase": 1.5}, {"erase": float("nan")}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"augment.{next(iter(options))}"):
        AugmentConfig(**options)  # type: ignore[arg-type]
