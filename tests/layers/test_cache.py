"""A cache changes nothing but speed: step by step is the same as all at once, padded, reordered or neither."""

import pytest
import torch

from fathom.core import catalog
from fathom.core.errors import ConfigError
from fathom.core.roles import LanguageModel
from fathom.core.types import DataSpec, Field

OPTIONS = [("gpt", {}), ("llama", {}), ("llama", {"experts": 4}), ("llama", {"num_kv_heads": 1, "tied": False})]
each_model = pytest.mark.parametrize(("name", "options"), OPTIONS)


def network(name: str, options: dict[str, object]) -> LanguageModel:
    torch.manual_seed(0)
    module = catalog.find("models", name).module
    config = module.Config(width=48, depth=3, num_heads=6, **options)
    model = module.build(config, DataSpec(inputs=(Field(name="t", kind="text", shape=(12,), vocabulary=50),)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, LanguageModel)
    return model.eval()


@each_model
@pytest.mark.parametrize("steps", [(12,), (1,) * 12, (5, 1, 1, 5), (1, 11), (7, 4, 1)])
@torch.no_grad()
def test_step_by_step_is_all_at_once(name: str, options: dict[str, object], steps: tuple[int, ...]) -> None:
    model = network(name, options)
    tokens = torch.randint(5, 50, (3, 12))
    cache = model.cache(3, 12)
    found = torch.cat([model.extend(part, cache) for part in tokens.split(steps, 1)], 1)
    torch.testing.assert_close(found, model({"text:t": tokens}).tokens, rtol=0, atol=1e-5)


@each_model
@torch.no_grad()
def test_padding_on_the_left_is_seen_by_nobody(name: str, options: dict[str, object]) -> None:
    model = network(name, options)
    tokens = torch.randint(5, 50, (3, 12))
    padding = (0, 2, 4)
    mask = torch.stack([torch.arange(5) >= cut for cut in padding])
    cache = model.cache(3, 12)
    parts = [model.extend(tokens[:, :5], cache, mask)]
    parts += [model.extend(part, cache) for part in tokens[:, 5:].split((1, 4, 2), 1)]
    found = torch.cat(parts, 1)
    assert found.isfinite().all()
    for row, cut in enumerate(padding):
        alone = model({"text:t": tokens[row : row + 1, cut:]}).tokens[0]
        torch.testing.assert_close(found[row, cut:], alone, rtol=0, atol=1e-5)


@each_model
@pytest.mark.parametrize("rows", [(2, 0, 1), (1, 1, 2, 0, 1), (2,)])
@torch.no_grad()
def test_reordered_rows_go_on_where_they_were(name: str, options: dict[str, object], rows: tuple[int, ...]) -> None:
    model = network(name, options)
    tokens, then = torch.randint(5, 50, (3, 6)), torch.randint(5, 50, (len(rows), 3))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, :2] = False
    cache = model.cache(3, 12)
    model.extend(tokens, cache, mask)
    cache.reorder(torch.tensor(rows))
    found = model.extend(then, cache)
    for place, row in enumerate(rows):
        whole = torch.cat([tokens[row, 2 * (row == 1) :], then[place]])
        alone = model({"text:t": whole[None]}).tokens[0, -3:]
        torch.testing.assert_close(found[place], alone, rtol=0, atol=1e-5)


@each_model
@torch.no_grad()
def test_a_part_is_read_again_apart(name: str, options: dict[str, object]) -> None:
    """What stood wrong of some rows is read again from where it began; the others are left alone."""
    model = network(name, options)
    tokens, then = torch.randint(5, 50, (3, 6)), torch.randint(5, 50, (3, 2))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[2, :3] = False
    right, wrong = (model.cache(3, 12) for _ in range(2))
    for cache in (right, wrong):
        model.extend(tokens, cache, mask)
    wanted = model.extend(then, right)
    mistaken = then.clone()
    mistaken[[0, 2]] += 1
    before = model.extend(mistaken, wrong)
    assert not torch.allclose(before[0], wanted[0])
    rows = torch.tensor([2, 0])
    part = wrong.part(rows, 6)
    torch.testing.assert_close(model.extend(then[rows], part), wanted[rows], rtol=0, atol=1e-5)
    wrong.take(rows, part, 2)
    last = torch.randint(5, 50, (3, 1))
    torch.testing.assert_close(model.extend(last, wrong), model.extend(last, right), rtol=0, atol=1e-5)


@torch.no_grad()
def test_room_is_made_once_and_has_an_end() -> None:
    model = network("llama", {})
    cache = model.cache(2, 6)
    model.extend(torch.full((2, 3), 7), cache)
    before = [keys.data_ptr() for keys in cache._keys]
    model.extend(torch.full((2, 3), 7), cache)
    assert [keys.data_ptr() for keys in cache._keys] == before
    with pytest.raises(ConfigError, match="room for 6 tokens, and 7 are to be kept"):
        model.extend(torch.full((2, 1), 7), cache)
