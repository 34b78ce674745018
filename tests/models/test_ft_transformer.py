"""FT-Transformer: the authors' own package weight for weight, the equations written out again, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats
from fathom.engine.plan import Plan
from fathom.models import ft_transformer

NUMBERS, CLASSES = 3, (4, 2)
WITHOUT_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}


def table(numbers: int = NUMBERS, classes: tuple[int, ...] = CLASSES) -> DataSpec:
    return DataSpec(
        inputs=(
            *(Field(name=f"x{i}", kind="number", stats=Stats()) for i in range(numbers)),
            *(
                Field(name=f"c{i}", kind="category", classes=(UNKNOWN, *(str(j) for j in range(1, size))))
                for i, size in enumerate(classes)
            ),
        )
    )


def rows_of(numbers: int = NUMBERS, classes: tuple[int, ...] = CLASSES, rows: int = 6) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    batch = {}
    if numbers:
        batch["number"] = torch.randn(rows, numbers, generator=draw)
    if classes:
        columns = [torch.randint(size, (rows,), generator=draw) for size in classes]
        batch["category"] = torch.stack(columns, dim=1)
    return batch


def network(spec: DataSpec | None = None, seed: int = 0, **options: object) -> ft_transformer.FTTransformer:
    config = replace(ft_transformer.Config(width=16, depth=3, num_heads=4), **options)
    torch.manual_seed(seed)
    return ft_transformer.build(config, spec or table()).eval()


def written_out(model: ft_transformer.FTTransformer, batch: dict[str, Tensor], num_heads: int) -> Tensor:
    """The paper's section 3.3, one row, one head and one token at a time."""
    weight = model.state_dict()
    depth, width = len(model.blocks), model.width
    size = width // num_heads
    found = []
    for row in range(len(batch["number"])):
        tokens = [weight["tokenize.first"][0]]
        for f, x in enumerate(batch["number"][row]):
            tokens.append(x * weight["tokenize.number.weight"][f] + weight["tokenize.number.bias"][f])
        for c, code in enumerate(batch["category"][row].tolist()):
            tokens.append(weight["tokenize.category.vectors"][sum(CLASSES[:c]) + code] + weight["tokenize.bias"][c])
        for i in range(depth):
            own = {key.removeprefix(f"blocks.{i}."): value for key, value in weight.items() if f"blocks.{i}." in key}
            calm = [normed(t, own, "norm_attention") for t in tokens] if i else tokens
            query, key, value = (
                [own["project_in.weight"][part] @ t + own["project_in.bias"][part] for t in calm]
                for part in (slice(0, width), slice(width, 2 * width), slice(2 * width, 3 * width))
            )
            after = []
            for q, token in zip(query, tokens, strict=True):
                heads = []
                for head in (slice(h * size, (h + 1) * size) for h in range(num_heads)):
                    share = torch.stack([q[head] @ k[head] / size**0.5 for k in key]).softmax(0)
                    heads.append(sum(s * v[head] for s, v in zip(share, value, strict=True)))
                token = token + own["project_out.weight"] @ torch.cat(heads) + own["project_out.bias"]
                both = own["expand.weight"] @ normed(token, own, "norm_network") + own["expand.bias"]
                linear, gate = both[: len(both) // 2], both[len(both) // 2 :]
                after.append(token + own["contract.weight"] @ (linear * gate.clamp_min(0)) + own["contract.bias"])
            tokens = after
        found.append(normed(tokens[0], weight, "norm").clamp_min(0))
    return torch.stack(found)


def normed(x: Tensor, weight: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight[f"{name}.weight"] + weight[f"{name}.bias"]


def shaken(model: nn.Module) -> nn.Module:
    """Move every parameter away from where it begins, so that none is zero or one."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def test_equals_the_equations_written_out() -> None:
    model = shaken(network())
    with torch.no_grad():
        found = model(rows_of()).pooled
        torch.testing.assert_close(found, written_out(model, rows_of(), 4), rtol=0, atol=1e-5)


def ours_to_theirs(model: ft_transformer.FTTransformer, classes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return our weights by the names of the authors' package."""
    weight = model.state_dict()
    found = {"cls_embedding.weight": weight["tokenize.first"][0]}
    if "tokenize.number.weight" in weight:
        found |= {f"cont_embeddings.{leaf}": weight[f"tokenize.number.{leaf}"] for leaf in ("weight", "bias")}
    if classes:
        found["cat_embeddings.bias"] = weight["tokenize.bias"]
        for column, vectors in enumerate(weight["tokenize.category.vectors"].split(list(classes))):
            found[f"cat_embeddings.embeddings.{column}.weight"] = vectors
    names = {
        "norm_attention": "attention_normalization",
        "norm_network": "ffn_normalization",
        "expand": "ffn.linear1",
        "contract": "ffn.linear2",
        "project_out": "attention.W_out",
    }
    for key, value in weight.items():
        part, *path = key.split(".")
        if part == "blocks" and path[1] == "project_in":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                found[f"backbone.blocks.{path[0]}.attention.W_{letter}.{path[2]}"] = third
        elif part == "blocks":
            found[f"backbone.blocks.{path[0]}.{names[path[1]]}.{path[2]}"] = value
        elif part == "norm":
            found[f"backbone.output.normalization.{path[0]}"] = value
    return found


def theirs_of(model: ft_transformer.FTTransformer, numbers: int, classes: tuple[int, ...], **options: object):
    """Return the authors' network with our weights, whose read-out is the identity."""
    package = pytest.importorskip("rtdl_revisiting_models", reason="the authors' package is not installed")
    theirs = package.FTTransformer(
        n_cont_features=numbers,
        cat_cardinalities=list(classes),
        d_out=model.width,
        d_block=model.width,
        n_blocks=len(model.blocks),
        attention_dropout=0.0,
        ffn_d_hidden=None,
        ffn_d_hidden_multiplier=4 / 3,
        ffn_dropout=0.0,
        residual_dropout=0.0,
        **options,
    )
    theirs.backbone.output.linear = nn.Identity()
    theirs.load_state_dict(ours_to_theirs(model, classes))
    return theirs


@pytest.mark.parametrize(("numbers", "classes"), [(3, (4, 2)), (3, ()), (0, (4, 2))])
def test_equals_the_authors_package_weight_for_weight(numbers: int, classes: tuple[int, ...]) -> None:
    model = shaken(network(table(numbers, classes), **WITHOUT_DROPOUT)).train()
    theirs = theirs_of(model, numbers, classes, attention_n_heads=4).train()
    batch = rows_of(numbers, classes)
    ours, reference = model(batch).pooled, theirs(batch.get("number"), batch.get("category"))
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)
    ours.square().mean().backward()
    reference.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = parameter.grad  # so that the table of names does for gradients too
        assert parameter.data.abs().sum() > 0, name
    for name, gradient in ours_to_theirs(model, classes).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("preset", "blocks"), [("ft_transformer_base", 3), ("ft_transformer_large", 6)])
def test_presets_are_the_authors_defaults(preset: str, blocks: int) -> None:
    package = pytest.importorskip("rtdl_revisiting_models", reason="the authors' package is not installed")
    settings = package.FTTransformer.get_default_kwargs(blocks)
    config = catalog.find("models", preset).config
    assert (config.depth, config.width, config.num_heads) == (blocks, settings["d_block"], 8)
    assert config.expansion == settings["ffn_d_hidden_multiplier"]
    assert config.attention_dropout == settings["attention_dropout"]
    assert (config.hidden_dropout, config.residual_dropout) == (settings["ffn_dropout"], settings["residual_dropout"])
    theirs = package.FTTransformer(n_cont_features=8, cat_cardinalities=[], d_out=None, **settings)
    ours = ft_transformer.build(config, ft_transformer.paper())
    counts = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert counts[0] == counts[1] + 2 * config.width  # the last norm is part of their read-out


@pytest.mark.parametrize(
    ("name", "parameters"),  # of eight numbers; a block's linear layers, its norms, tokens, the last norm
    [
        ("ft_transformer_base", 3 * (4 * 193 * 192 + 193 * 512 + 257 * 192) + 5 * 2 * 192 + 17 * 192 + 2 * 192),
        ("ft_transformer_large", 6 * (4 * 385 * 384 + 385 * 1024 + 513 * 384) + 11 * 2 * 384 + 17 * 384 + 2 * 384),
    ],
)
def test_parameters_are_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = ft_transformer.build(catalog.find("models", name).config, ft_transformer.paper())
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_last_block_computes_the_first_token_as_if_it_computed_all() -> None:
    model = shaken(network())
    x = model.tokenize(rows_of())
    for block in model.blocks:
        x = block(x)
    torch.testing.assert_close(model(rows_of()).pooled, model.norm(x[:, 0]).relu(), rtol=0, atol=1e-5)


def test_what_tokens_are_made_of_is_not_decayed() -> None:
    decayed = {n for n, p in network().named_parameters() if p.ndim > 1 and not getattr(p, "no_weight_decay", False)}
    linear = ("project_in", "project_out", "expand", "contract")
    assert decayed == {f"blocks.{i}.{name}.weight" for i in range(3) for name in linear}


def test_dropout_acts_in_training_only() -> None:
    for option in ("attention_dropout", "hidden_dropout", "residual_dropout"):
        model = network(**WITHOUT_DROPOUT | {option: 0.5})
        assert torch.equal(model(rows_of()).pooled, model(rows_of()).pooled)
        model.train()
        assert not torch.equal(model(rows_of()).pooled, model(rows_of()).pooled)


class Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch).pooled


def test_exports_with_any_number_of_rows() -> None:
    model = Pooled(network())
    rows = torch.export.Dim("rows", min=2, max=4096)
    shapes = ({"number": {0: rows}, "category": {0: rows}},)
    exported = torch.export.export(model, (rows_of(),), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(rows_of(rows=9)), model(rows_of(rows=9)), rtol=0, atol=1e-5)


def test_the_recipe_is_a_plan_that_can_be_built() -> None:
    for rows in (0, 1_000, 5_000, 50_000):
        for config in (ft_transformer.Config(), *ft_transformer.presets.values()):
            found = ft_transformer.recipe(config, replace(table(), rows=rows))
            assert build_config(Plan, found["engine"], "engine").epochs >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"'model\.width' was given 0; expected 1 or more"),
        ({"depth": 0}, r"'model\.depth' was given 0; expected 1 or more"),
        ({"num_heads": 0}, r"'model\.num_heads' was given 0; expected 1 or more"),
        ({"num_heads": 5}, r"does not divide the width of 16: set model\.width=20"),
        ({"hidden_dropout": 1.0}, r"'model\.hidden_dropout' was given 1\.0; expected at least 0 and below 1"),
        ({"expansion": 0.0}, r"'model\.expansion' was given 0\.0; a width of 16 needs at least 0\.0625"),
    ],
)
def test_options_out_of_range_are_refused_with_what_to_change(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(**options)


def test_other_kinds_of_columns_are_refused_by_name() -> None:
    spec = DataSpec(inputs=(*table().inputs, Field(name="photo", kind="image", shape=(3, 8, 8))))
    with pytest.raises(ConfigError, match="'photo' is image"):
        network(spec)
    assert ft_transformer.accepts(DataSpec(inputs=()))
