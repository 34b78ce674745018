"""ResNet: the paper's numbers, an independent reference, and what every image model must stand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field
from fathom.data.augment import AugmentConfig
from fathom.engine.plan import Plan
from fathom.models import resnet
from fathom.objectives import supervised
from tests.models.published_images import KEY, assert_twins, images_of, reference, some_images


def network(name: str, spec: DataSpec, **options: object) -> resnet.ResNet:
    torch.manual_seed(0)
    return resnet.build(replace(catalog.find("models", name).config, **options), spec)


@pytest.mark.parametrize(
    ("name", "parameters"),  # of the networks for ImageNet, with a read-out of 1,000 classes
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_parameter_counts_are_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(name, images_of(3, 224, 224))
        head = nn.Linear(model.width, 1000)
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) == parameters


@pytest.mark.parametrize(
    ("settings", "side", "atol"),
    [
        ({"layer_type": "basic", "depths": [2, 1], "hidden_sizes": [16, 32], "embedding_size": 8}, (97, 128), 1e-5),
        ({"layer_type": "bottleneck", "depths": [1, 2], "hidden_sizes": [32, 64], "embedding_size": 8}, (64, 64), 1e-5),
        (
            {
                "layer_type": "bottleneck",
                "depths": [2, 1, 1],
                "hidden_sizes": [32, 64, 96],
                "embedding_size": 16,
                "downsample_in_bottleneck": True,
                "downsample_in_first_stage": True,
            },
            (96, 101),
            1e-5,
        ),
        ({"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}, (96, 96), 1e-4),
        ({}, (96, 96), 1e-4),  # resnet50, with strides in its 3×3s
    ],
    ids=["basic", "bottleneck", "strides in 1×1", "resnet18", "resnet50"],
)
def test_equals_transformers_weight_for_weight(settings: dict, side: tuple[int, int], atol: float) -> None:
    spec = images_of(3, *side)
    theirs = reference("ResNet", spec, **settings)
    config = resnet.published(theirs.config.to_dict())
    assert_twins(resnet.build(config, spec), theirs, list(resnet.matches(config)), spec, atol=atol)


def test_published_configurations_are_the_presets() -> None:
    sizes = [256, 512, 1024, 2048]
    found = resnet.published({"layer_type": "bottleneck", "depths": [3, 4, 23, 3], "hidden_sizes": sizes})
    assert found == replace(resnet.presets["resnet101"], stem="large", stride_at="3x3")
    found = resnet.published({"layer_type": "basic", "depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512]})
    assert found == replace(resnet.presets["resnet34"], stem="large", stride_at="3x3")
    with pytest.raises(ConfigError, match="activation 'gelu'; only 'relu'"):
        resnet.published({"model_type": "resnet", "hidden_act": "gelu"})


def test_those_for_cifar_have_the_small_stem_and_its_number_of_weights() -> None:
    with torch.device("meta"):
        model = network("resnet18_cifar", images_of(3, 32, 32))
        head = nn.Linear(model.width, 10)
    assert sum(p.numel() for p in (*model.parameters(), *head.parameters())) == 11_173_962
    spec = images_of(3, 96, 96)
    assert network("resnet18_cifar", spec)(some_images(spec, 2)).maps[0].shape == (2, 64, 96, 96)
    assert isinstance(network("resnet18", spec).pool, nn.MaxPool2d)


@pytest.mark.parametrize(
    ("name", "shape", "finest", "coarsest"),
    [
        ("resnet", (1, 28, 28), (14, 14), (4, 4)),
        ("resnet", (3, 33, 50), (17, 25), (5, 7)),  # odd sides are rounded up, on the shortcut as on the branch
        ("resnet18", (3, 32, 32), (32, 32), (4, 4)),  # small images: the stem keeps their size
        ("resnet18", (3, 96, 160), (24, 40), (3, 5)),  # large ones: the paper's stem divides by four
        ("resnet50", (1, 40, 24), (40, 24), (5, 3)),
    ],
)
def test_features(name: str, shape: tuple[int, ...], finest: tuple[int, ...], coarsest: tuple[int, ...]) -> None:
    spec = images_of(*shape)
    model = network(name, spec)
    found = model(some_images(spec, 2))
    assert found.pooled.shape == (2, model.width)
    assert found.maps[0].shape[2:] == finest
    assert found.maps[-1].shape[2:] == coarsest
    torch.testing.assert_close(found.maps[-1].mean((2, 3)), found.pooled)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_images_below_the_total_stride_are_refused_with_a_way_out(name: str) -> None:
    assert network(name, images_of(1, 8, 8))(some_images(images_of(1, 8, 8), 2)).pooled.isfinite().all()
    small = images_of(1, 7, 9)
    with pytest.raises(ConfigError, match=r"'photo' are 9x7 pixels.*divides each side by 8.*prepare\.image_size=8"):
        network(name, small)
    fewer = network(name, small, depths=(1,), widths=(64,))  # what the message proposes
    assert fewer(some_images(small, 2)).pooled.shape[0] == 2


@pytest.mark.parametrize(
    ("side", "rows", "widths", "last"),
    [
        (4, 500, (32,), 2),
        (8, 500, (32,), 4),
        (28, 9_000, (32, 64, 128), 4),
        (28, 54_000, (48, 96, 192), 4),
        (64, 9_000, (32, 64, 128, 256), 4),
        (128, 9_000, (32, 64, 128), 4),
        (224, 9_000, (32, 64, 128, 256), 4),
    ],
)
def test_the_default_fits_itself_to_the_images(side: int, rows: int, widths: tuple[int, ...], last: int) -> None:
    spec = images_of(1, side, side, rows)
    config = resnet.resolved(resnet.Config(), spec.inputs[0], rows)
    assert config.widths == widths
    assert config.stem_width == widths[0] // 2
    found = network("resnet", spec).eval()(some_images(spec, 1))
    assert found.pooled.shape[1] == widths[-1]
    assert found.maps[-1].shape[2:] == (last, last)


def test_the_default_refuses_only_the_tiniest() -> None:
    with pytest.raises(ConfigError, match="are 1x5 pixels"):
        network("resnet", images_of(1, 5, 1))


def test_one_of_depths_and_widths_decides_the_other() -> None:
    field = images_of(1, 28, 28).inputs[0]
    assert resnet.resolved(resnet.Config(depths=(2, 3, 1)), field, 10).widths == (32, 64, 128)
    assert resnet.resolved(resnet.Config(widths=(8,)), field, 10).depths == (1,)


def test_other_data_and_bad_options_are_refused() -> None:
    spec = images_of(1, 28, 28)
    table = DataSpec(inputs=(Field(name="size", kind="number"), *spec.inputs))
    assert "'size' (number), 'photo' (image)" in str(resnet.accepts(table))
    assert resnet.accepts(spec) is None
    with pytest.raises(ConfigError, match="one image column"):
        resnet.build(resnet.Config(), table)
    with pytest.raises(ConfigError, match="same number of stages"):
        resnet.build(resnet.Config(depths=(1, 1), widths=(8,)), spec)
    for name, value in (("depths", (0, 1)), ("widths", (8, -1)), ("stem_width", -1), ("stem_stride", 0)):
        with pytest.raises(ConfigError, match=f"model.{name}"):
            resnet.build(resnet.Config(**{name: value}), spec)
    with pytest.raises(ConfigError, match=r"model\.first_stride"):
        resnet.build(resnet.Config(first_stride=0), spec)


def test_pixels_are_normalised_inside() -> None:
    spec = images_of(3, 16, 16)
    model = network("resnet", spec)
    mean = torch.full((1, 3, 16, 16), 120, dtype=torch.uint8)
    assert model.normalize(mean).abs().max() == 0
    assert model.normalize(mean + 60).unique().tolist() == [1.0]
    batch = some_images(spec, 4)
    as_float = {KEY: batch[KEY].float()}
    torch.testing.assert_close(model.eval()(batch).pooled, model(as_float).pooled)
    assert not any("normalize" in key for key in model.state_dict())  # rebuilt from the spec, not stored


@pytest.mark.parametrize("name", ["resnet", "resnet34"])
def test_a_signal_keeps_its_size_through_the_depth(name: str) -> None:
    spec = images_of(3, 32, 32)
    for map_ in network(name, spec)(some_images(spec, 16)).maps:
        assert 0.3 < map_.std() < 3


def test_blocks_begin_as_the_identity() -> None:
    spec = images_of(1, 28, 28)
    model = network("resnet", spec, depths=(3, 1))
    batch = some_images(spec, 4)
    before = model.stages[0][0](model.pool(model.stem(model.normalize(batch[KEY]))))
    assert torch.equal(model(batch).maps[0], before)  # the second and third block change nothing yet


@pytest.mark.parametrize("name", ["resnet", "resnet18", "resnet50"])
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    spec = images_of(3, 32, 32)
    model = network(name, spec, identity_start=False)
    objective = supervised.build(supervised.Config(), spec, model)
    objective.losses(some_images(spec, 4)).total.backward()
    silent = [n for n, p in objective.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize("name", ["resnet", "resnet50"])
def test_an_image_is_judged_alone(name: str) -> None:
    spec = images_of(1, 28, 28)
    model = network(name, spec).eval()
    batch = {KEY: some_images(spec, 5)[KEY]}
    with torch.no_grad():
        whole = model(batch).pooled
        backwards = model({KEY: batch[KEY].flip(0)}).pooled.flip(0)
        alone = torch.cat([model({KEY: image[None]}).pooled for image in batch[KEY]])  # batches of one
    torch.testing.assert_close(whole, backwards, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "resnet18"])
def test_compiles_as_one_graph_and_exports(name: str) -> None:
    spec = images_of(1, 28, 28)
    model = network(name, spec).eval()
    batch = {KEY: some_images(spec, 3)[KEY]}
    with torch.no_grad():
        expected = model(batch).pooled
        compiled = torch.compile(model, fullgraph=True, backend="eager")(batch).pooled
    torch.testing.assert_close(compiled, expected)

    class Pooled(nn.Module):  # the features are a dataclass, which an exported graph cannot give out
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.model(batch).pooled

    shapes = ({KEY: {0: torch.export.Dim("batch")}},)
    exported = torch.export.export(Pooled(), (batch,), dynamic_shapes=shapes).module()
    five = {KEY: some_images(spec, 5)[KEY]}
    with torch.no_grad():
        torch.testing.assert_close(exported(five), model(five).pooled, rtol=1e-4, atol=1e-5)


def test_memory_layout_changes_nothing_but_speed() -> None:
    spec = images_of(1, 28, 28)
    model = network("resnet", spec).eval()
    batch = some_images(spec, 4)
    with torch.no_grad():
        expected = model(batch).pooled
        last = model.to(memory_format=torch.channels_last)(batch)
    assert last.maps[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.pooled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "resnet18"])
def test_learns_one_batch_by_heart(name: str) -> None:
    spec = images_of(1, 24, 24)
    options = {"widths": (16, 16, 16, 16)} if name == "resnet18" else {}
    objective = supervised.build(supervised.Config(), spec, network(name, spec, **options))
    batch = some_images(spec, 24)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05, momentum=0.9)
    first = objective.losses(batch).total.item()
    for _ in range(50):
        optimizer.zero_grad()
        objective.losses(batch).total.backward()
        optimizer.step()
    assert first > 0.8
    assert objective.losses(batch).total.item() < 0.05


@pytest.mark.parametrize("name", ["resnet", "resnet18", "resnet50"])
@pytest.mark.parametrize("rows", [0, 200, 9_000, 60_000, 2_000_000])
def test_the_recipe_holds_only_options_that_exist(name: str, rows: int) -> None:
    spec = images_of(1, 28, 28, rows)
    recipe = resnet.recipe(catalog.find("models", name).config, spec)
    rooms = {"engine": Plan, "objective": supervised.Config, "augment": AugmentConfig}
    assert set(recipe) <= set(rooms)
    built = {room: build_config(rooms[room], options, room) for room, options in recipe.items()}
    assert built["engine"].epochs >= 1


def test_the_recipe_passes_less_often_over_more_rows() -> None:
    epochs = [
        resnet.recipe(resnet.Config(), images_of(1, 28, 28, rows))["engine"]["epochs"]
        for rows in (200, 9_000, 54_000, 10**6)
    ]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


def test_a_mirrored_image_is_predicted_the_same_where_labels_allow_it() -> None:
    spec = resnet.example()
    batch = {"image:image": torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8)}
    mirrored = {"image:image": batch["image:image"].flip(3)}
    for mirror, alike in (("yes", True), ("auto", True), ("no", False)):
        torch.manual_seed(0)
        network = resnet.build(resnet.Config(mirror=mirror), spec)
        network(batch)  # running statistics that are not those of the start
        network.eval()
        with torch.no_grad():
            same = torch.allclose(network(batch).pooled, network(mirrored).pooled, atol=1e-5)
        assert same is alike
