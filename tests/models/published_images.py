"""An image network of ours beside transformers', with the same random weights: what it gives out, and its gradients."""

import pytest
import torch
from torch import Tensor, nn

from fathom import pretrained
from fathom.core.published import Match, translate
from fathom.core.types import DataSpec, Field, Stats

KEY = "image:photo"


def images_of(channels: int = 3, height: int = 64, width: int = 64, rows: int = 1000) -> DataSpec:
    stats = Stats(mean=(120.0,) * channels, std=(60.0,) * channels)
    return DataSpec(
        inputs=(Field(name="photo", kind="image", shape=(channels, height, width), stats=stats),),
        targets=(Field(name="label", kind="category", classes=("cat", "dog", "cow"), counts=(8, 8, 8)),),
        rows=rows,
    )


def some_images(spec: DataSpec, size: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        KEY: torch.randint(256, (size, *spec.inputs[0].shape), dtype=torch.uint8, generator=draw),
        "target:label": torch.randint(3, (size,), generator=draw),
    }


def reference(name: str, spec: DataSpec, **settings: object) -> nn.Module:
    """Return a network of transformers with random weights that all count, and keep signals at their size."""
    transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")
    torch.manual_seed(2)
    theirs = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
            elif path.endswith("bias"):
                parameter.normal_(std=0.1)
            else:
                parameter.uniform_(0.5, 1.5)
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # running statistics of such images, so that signals keep their size
        theirs.train()((some_images(spec, 8)[KEY] - 120.0) / 60)
    return theirs


def assert_twins(
    ours: nn.Module, theirs: nn.Module, table: list[Match], spec: DataSpec, rows: int = 3, atol: float = 1e-5
) -> None:
    """Fill ours with their weights, all of them, and compare the features, and the gradients of one training step."""
    loaded = pretrained.put(ours, theirs.state_dict(), table)
    assert loaded.left == () and loaded.fresh == () and loaded.changed == ()
    batch = some_images(spec, rows)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        found, expected = ours(batch), theirs(ours.normalize(batch[KEY]))
    torch.testing.assert_close(found.pooled, expected.pooler_output.flatten(1), atol=atol, rtol=0)
    torch.testing.assert_close(found.maps[-1], expected.last_hidden_state, atol=atol, rtol=1e-5)
    assert found.pooled.std() > 0.05  # of zeros alone, all would be equal
    # Batch norms magnify what is rounded, so gradients are compared in double precision, and to more places.
    ours.double().train(), theirs.double().train()
    for pooled in (ours(batch).pooled, theirs(ours.normalize(batch[KEY])).pooler_output.flatten(1)):
        (pooled * torch.linspace(-1, 1, pooled.shape[1], dtype=torch.float64)).sum().backward()
    wanted = translate({name: p.grad for name, p in theirs.named_parameters()}, table).tensors
    assert set(wanted) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-9, rtol=1e-8, msg=f"the gradient of {name}")
        assert parameter.grad.abs().max() > 0
