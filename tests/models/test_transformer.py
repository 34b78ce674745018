"""The transformer encoder: its block against PyTorch's own, weight for weight; padding, positions, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import PAD, DataSpec, Field
from fathom.layers.attention import EncoderBlock, Packing, SelfAttention, rotary_angles, rotate
from fathom.models import transformer
from tests.conformance.samples import batch_of

SMALL = transformer.Config(width=16, depth=2, num_heads=4, dropout=0.0, token_dropout=0.0)
ONE = DataSpec(inputs=(Field(name="a", kind="text", shape=(7,), vocabulary=12),))
POSITIONS = ("rotary", "learned", "none")


def build(config: transformer.Config = SMALL, spec: DataSpec | None = None) -> transformer.Transformer:
    torch.manual_seed(0)
    model = transformer.build(config, spec or transformer.example()).eval()
    with torch.no_grad():  # as training leaves it: nothing is zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def copy_attention(ours: SelfAttention, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.project_in.weight.data, ours.project_in.bias.data
    theirs.out_proj.load_state_dict(ours.project_out.state_dict())


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_attention_equals_multihead_attention(num_heads):
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, num_heads), nn.MultiheadAttention(16, num_heads, batch_first=True)
    copy_attention(ours, theirs)
    x, real = torch.randn(3, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x, real[:, None, None, :]), theirs(x, x, x, key_padding_mask=~real)[0])


def test_block_equals_transformer_encoder_layer():
    torch.manual_seed(0)
    ours = EncoderBlock(16, 4, 40)
    theirs = nn.TransformerEncoderLayer(16, 4, 40, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    copy_attention(ours.attention, theirs.self_attn)
    for mine, other in (
        (ours.norm_attention, theirs.norm1),
        (ours.norm_network, theirs.norm2),
        (ours.expand, theirs.linear1),
        (ours.contract, theirs.linear2),
    ):
        nn.init.normal_(mine.weight)
        other.load_state_dict(mine.state_dict())
    x, real = torch.randn(2, 6, 16), torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()
    torch.testing.assert_close(
        ours(x, real[:, None, None, :])[real], theirs(x, src_key_padding_mask=~real)[real], atol=1e-5, rtol=1e-5
    )


def test_packing_changes_nothing_but_the_padding():
    torch.manual_seed(0)
    block, x, real = EncoderBlock(16, 4, 40), torch.randn(3, 6, 16), torch.rand(3, 6) < 0.6
    real[:, 0] = True
    packing, visible, turns = Packing(real), real[:, None, None, :], rotary_angles(6, 4)
    assert torch.equal(packing.pack(x), x[real])
    packed = packing.pad(block(packing.pack(x), visible, turns, packing))
    torch.testing.assert_close(packed, block(x, visible, turns) * real[..., None])


def test_rotation_keeps_lengths_and_tells_distance_alone():
    angles = rotary_angles(50, 8)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 50, 8)
    turned = rotate(query, angles)
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))
    products = (turned @ rotate(key, angles).transpose(-1, -2))[0, 0]  # [T, T]
    for distance in (0, 3, 17):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(products.diagonal(3)[:1], products.diagonal(17)[:1])
    by_hand = torch.polar(torch.ones(50, 4), angles) * torch.complex(query[0, 0, :, :4], query[0, 0, :, 4:])
    torch.testing.assert_close(turned[0, 0], torch.cat([by_hand.real, by_hand.imag], dim=-1))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_changes_nothing(positions, pooling):
    """The same text in a longer row, and whatever its padding would have been, has the same features."""
    config = replace(SMALL, positions=positions, pooling=pooling)
    longer = DataSpec(inputs=(replace(ONE.inputs[0], shape=(11,)),))
    model, wide = build(config, ONE), build(config, longer)
    state = model.state_dict()
    if positions == "learned":
        state["places"] = torch.cat([state["places"], torch.randn(4, 16)])
    wide.load_state_dict(state)
    tokens = batch_of(ONE, 8)["text:a"]
    short = model({"text:a": tokens})
    long = wide({"text:a": nn.functional.pad(tokens, (0, 4))})
    torch.testing.assert_close(long.pooled, short.pooled)
    torch.testing.assert_close(long.tokens[:, :7][short.mask], short.tokens[short.mask])
    assert torch.equal(short.mask, tokens != PAD)
    model.vectors[0].weight.data[PAD] = 50.0
    torch.testing.assert_close(model({"text:a": tokens}).pooled, short.pooled)


@pytest.mark.parametrize("positions", POSITIONS)
def test_order_of_words_counts_where_positions_are_told(positions):
    model = build(replace(SMALL, positions=positions), ONE)
    forth, back = torch.tensor([[5, 6, 7, 8, 9, 10, 11]]), torch.tensor([[11, 10, 9, 8, 7, 6, 5]])
    same = torch.allclose(model({"text:a": forth}).pooled, model({"text:a": back}).pooled, atol=1e-5)
    assert same == (positions == "none")


def test_columns_are_told_apart_and_see_one_another():
    spec = DataSpec(inputs=tuple(Field(name=name, kind="text", shape=(4,), vocabulary=12) for name in "ab"))
    model = build(SMALL, spec)
    left, right = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[8, 9, 0, 0]])
    found = model({"text:a": left, "text:b": right})
    assert found.tokens.shape == (1, 8, 16)
    assert found.mask.tolist() == [[True] * 3 + [False] + [True] * 2 + [False] * 2]
    assert not torch.allclose(found.pooled, model({"text:a": right, "text:b": left}).pooled, atol=1e-4)
    other = model({"text:a": left, "text:b": torch.tensor([[10, 9, 0, 0]])})
    assert not torch.allclose(found.tokens[:, :3], other.tokens[:, :3], atol=1e-4)


def test_rows_do_not_touch_one_another():
    batch = batch_of(transformer.example(), 8)
    model, order = build(), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(model(shuffled).pooled, model(batch).pooled[order], atol=1e-5, rtol=1e-5)


def test_a_row_without_tokens_is_finite_in_both_directions():
    model = build(SMALL, ONE).train()
    pooled = model({"text:a": torch.zeros(2, 7, dtype=torch.int32)}).pooled
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_sizes():
    """BERT-base has 85,054,464 parameters in its twelve layers; ours add the final norm."""
    spec = DataSpec(inputs=(Field(name="a", kind="text", shape=(512,), vocabulary=30_522),))
    with torch.device("meta"):
        model = transformer.Transformer(transformer.presets["transformer_base"], spec)
    assert sum(p.numel() for p in model.blocks.parameters()) == 85_054_464
    assert sum(p.numel() for p in model.parameters()) == 85_054_464 + 30_522 * 768 + 2 * 768
    small = build(SMALL, ONE)
    block = 16 * 48 + 48 + 16 * 16 + 16 + 16 * 64 + 64 + 64 * 16 + 16 + 4 * 16
    assert sum(p.numel() for p in small.parameters()) == 2 * block + 12 * 16 + 2 * 16


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_learns(positions):
    model = build(replace(SMALL, positions=positions, dropout=0.1, token_dropout=0.1)).train()
    model(batch_of(transformer.example(), 32)).pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_acts_in_training_only():
    model, batch = build(replace(SMALL, token_dropout=0.5)), batch_of(transformer.example(), 8)
    assert torch.equal(model(batch).pooled, model(batch).pooled)
    model.train()
    assert not torch.equal(model(batch).pooled, model(batch).pooled)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_compiles_whole_and_exports(positions):
    model, batch = build(replace(SMALL, positions=positions)), batch_of(transformer.example(), 4)
    batch = {key: batch[key] for key in model.keys}
    expected = model(batch).pooled
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(batch).pooled
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)
    exported = torch.export.export(Pooled(model), (batch,)).module()(batch)
    torch.testing.assert_close(exported, expected, atol=1e-5, rtol=1e-5)


class Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(batch).pooled


def test_heads_that_do_not_divide_the_width_are_refused_with_a_width_that_serves():
    with pytest.raises(ConfigError, match=r"given 6, which does not divide the width of 128; set model.width=132"):
        transformer.build(transformer.Config(num_heads=6), ONE)
    assert transformer.build(transformer.Config(num_heads=6, width=132, depth=1), ONE).width == 132
    with pytest.raises(ConfigError, match=r"even size, and 4 heads have 5 each: set model.width=24"):
        transformer.build(transformer.Config(num_heads=4, width=20), ONE)
    assert transformer.build(transformer.Config(num_heads=4, width=20, positions="learned"), ONE).width == 20


@pytest.mark.parametrize("options", [{"depth": 0}, {"width": 0}, {"dropout": -0.1}, {"token_dropout": 1.0}])
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"'model.{next(iter(options))}' was given .*; expected"):
        transformer.build(replace(SMALL, **options), ONE)


def test_other_columns_are_refused_by_name():
    spec = DataSpec(inputs=(*ONE.inputs, Field(name="photo", kind="image", shape=(1, 8, 8))))
    with pytest.raises(ConfigError, match=r"it takes texts; column 'photo' is image\."):
        transformer.build(SMALL, spec)
