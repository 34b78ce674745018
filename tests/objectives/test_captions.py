"""Images made of what is said in words: how captions are read, led towards, left out, and learned."""

from functools import partial

import pytest
import torch
from torch import nn

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field, Stats, TrainingData
from fathom.data import TensorStore
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.layers.condition import CaptionEmbedding
from fathom.models import dit, unet
from fathom.objectives import diffuse
from fathom.objectives.diffuse import Asked, Config
from tests.conformance.samples import batch_of
from tests.objectives.differences import as_differences_say
from tests.objectives.stopping import whole_and_resumed

IMAGE = Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
WORDS = Field(name="caption", kind="text", shape=(6,), vocabulary=12)
LABEL = Field(name="label", kind="category", classes=("a", "b", "c"), counts=(8, 8, 8))
SAID = DataSpec(inputs=(IMAGE, WORDS), rows=40)
BOTH = DataSpec(inputs=(IMAGE, WORDS), targets=(LABEL,), rows=40)
NETWORKS = {
    "unet": lambda spec: unet.build(unet.Config(widths=(8, 8), groups=4), spec),
    "dit": lambda spec: dit.build(dit.Config(width=16, depth=1, num_heads=2), spec),
}


def built(spec=SAID, seed=0, name="unet", loud=False, **options):
    torch.manual_seed(seed)
    task = diffuse.build(Config(**options), spec, NETWORKS[name](spec))
    for parameter in task.parameters() if loud else ():  # blocks begin as nothing
        nn.init.normal_(parameter, std=0.2)
    return task


def test_a_caption_is_read_as_pytorchs_own_encoder_reads_it() -> None:
    torch.manual_seed(0)
    ours = CaptionEmbedding(WORDS, 10).eval()
    layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    names = {
        "self_attn.in_proj_": "attention.project_in.", "self_attn.out_proj.": "attention.project_out.",
        "linear1.": "expand.", "linear2.": "contract.", "norm1.": "norm_attention.", "norm2.": "norm_network.",
    }  # fmt: skip
    state = {}
    for index, block in enumerate(ours.blocks):
        for there, here in names.items():
            for part in ("weight", "bias"):
                state[f"layers.{index}.{there}{part}"] = block.state_dict()[here + part]
    theirs.load_state_dict(state)
    tokens = torch.tensor([[2, 7, 8, 3, 0, 0], [2, 9, 3, 0, 0, 0], [2, 5, 6, 7, 8, 3]])
    real = tokens != 0
    with torch.no_grad():
        read = theirs(ours.vectors(tokens) + ours.places, src_key_padding_mask=~real)
        mean = torch.stack([row[seen].mean(0) for row, seen in zip(read, real, strict=True)])
        torch.testing.assert_close(ours(tokens, 3), ours.leave(ours.norm(mean)), rtol=1e-4, atol=1e-5)
        longer = CaptionEmbedding(Field(name="c", kind="text", shape=(9,), vocabulary=12), 10).eval()
        longer.load_state_dict(ours.state_dict())
        torch.testing.assert_close(longer(nn.functional.pad(tokens, (0, 3)), 3), ours(tokens, 3), rtol=1e-4, atol=1e-5)
        mixed = torch.cat([tokens, torch.zeros(1, 6, dtype=torch.long)])
        torch.testing.assert_close(ours(mixed, 4)[:3], ours(tokens, 3), rtol=1e-4, atol=1e-5)
        assert torch.equal(ours(mixed, 4)[3], ours.none) and torch.equal(ours(None, 2), ours.none.expand(2, -1))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_loss_is_the_squared_error_of_what_is_told_with_the_caption(name) -> None:
    task, batch = built(name=name, loud=True, label_dropout=0.0), batch_of(SAID, 6)
    torch.manual_seed(3)
    found = task.losses(batch).total
    torch.manual_seed(3)
    level = (torch.rand(6) * 1000).floor().long()
    torch.rand(6)  # of which rows the caption is not told: none
    image, noise = batch["image:image"].float() / 127.5 - 1, torch.randn(6, 1, 8, 8)
    step = torch.arange(1001, dtype=torch.float64) / 1000
    kept = ((step + 0.008) / 1.008 * torch.pi / 2).cos().square()
    kept = (1 - (1 - kept[1:] / kept[:-1]).clamp(max=0.999)).cumprod(0)[level].float()[:, None, None, None]
    seen, wanted = kept.sqrt() * image + (1 - kept).sqrt() * noise, kept.sqrt() * noise - (1 - kept).sqrt() * image
    said = task.model.denoise(seen, level.float(), None, batch["text:caption"])
    torch.testing.assert_close(found, (said - wanted).square().mean(), rtol=1e-4, atol=1e-5)
    other = task.model.denoise(seen, level.float(), None, batch["text:caption"].flip(0))
    assert (said - other).abs().max() > 1e-4


def test_guidance_goes_on_from_what_is_told_without_words_beyond_what_is_told_with_them() -> None:
    for spec, label in ((SAID, None), (BOTH, torch.tensor([0, 2])), (BOTH, None)):
        task = built(spec, loud=True).eval()
        x, time, caption = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.7]), torch.tensor([[2, 7, 3], [2, 8, 3]])
        caption = nn.functional.pad(caption, (0, 3))
        asked = Asked(label, caption)
        none = Asked(None if label is None else torch.tensor([3, 3]), torch.zeros_like(caption))
        with torch.no_grad():
            told, untold = task._answer(x, time, asked, 1.0), task._answer(x, time, none, 1.0)
            led = task._answer(x, time, asked, 3.0)
        torch.testing.assert_close(led, untold + 3 * (told - untold), rtol=1e-4, atol=1e-4)
        assert (told - untold).abs().max() > 1e-3


def test_some_rows_are_told_nothing_and_some_only_one_of_the_two() -> None:
    torch.manual_seed(0)
    label, caption = torch.ones(4000, dtype=torch.long), torch.full((4000, 6), 7)
    found = built(BOTH, label_dropout=0.2)._partly(Asked(label, caption))
    unlabelled, unsaid = found.label == 3, (found.caption == 0).all(1)
    for share, expected in ((unlabelled & unsaid, 0.2), (unlabelled & ~unsaid, 0.2), (~unlabelled & unsaid, 0.2)):
        assert share.float().mean().item() == pytest.approx(expected, abs=0.03)
    alone = built(SAID, label_dropout=0.2)._partly(Asked(None, caption))
    assert alone.label is None
    assert (alone.caption == 0).all(1).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_gradients_of_what_reads_captions_are_those_of_differences() -> None:
    task = built(BOTH, loud=True).double()
    names = [f"model.caption.{part}" for part in ("none", "norm.weight", "norm.bias", "blocks.0.norm_network.bias")]
    assert as_differences_say(task, batch_of(BOTH, 3), names)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_run_stopped_and_resumed_ends_with_the_same_weights(name, tmp_path) -> None:
    plan = Plan(epochs=3, batch_size=8, threads=1, precision="fp32", accumulate=2, average=0.9)
    data = TrainingData(train=TensorStore(batch_of(BOTH, 24)), valid=TensorStore(batch_of(BOTH, 8, seed=1)))
    ends = whole_and_resumed(partial(built, BOTH, name=name), data, plan, tmp_path, after=1)
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


class Pooled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch):
        return self.network(batch).pooled


@pytest.mark.parametrize("name", list(NETWORKS))
def test_as_a_backbone_it_reads_the_caption_and_is_one_graph(name) -> None:
    torch.manual_seed(0)
    network, batch = Pooled(NETWORKS[name](SAID)).eval(), batch_of(SAID, 4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    other = {**batch, "text:caption": batch["text:caption"].flip(0)}
    with torch.no_grad():
        whole = network(batch)
        assert (whole - network(other)).abs().max() > 1e-4
        one = network({key: value[:1] for key, value in batch.items()})
        torch.testing.assert_close(one, whole[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.export.export(network, (batch,)).module()(batch), whole, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(batch), whole, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        network(batch).square().mean().backward()
    caption = [p.grad for key, p in network.named_parameters() if "caption" in key and not key.endswith("none")]
    assert caption and all(grad is not None and grad.isfinite().all() for grad in caption)


@pytest.mark.parametrize("spec", [SAID, BOTH], ids=["words alone", "classes too"])
def test_it_learns_what_words_look_like(spec) -> None:
    """Images of one brightness each, dark or light as a word says: after a short run, so are those asked for."""
    random = torch.Generator().manual_seed(0)
    label = torch.randint(3, (240,), generator=random)
    image = (40 + 80 * label[:, None, None, None] + 5 * torch.randn(240, 1, 8, 8, generator=random)).clamp(0, 255)
    filler = torch.randint(8, 12, (240, 2), generator=random)  # words that mean nothing
    ends = torch.tensor([[2, 3]]).expand(240, -1)
    caption = torch.cat([ends[:, :1], filler[:, :1], 5 + label[:, None], filler[:, 1:], ends[:, 1:]], 1)
    caption = nn.functional.pad(caption, (0, 1)).int()
    columns = {"image:image": image.to(torch.uint8), "text:caption": caption, "target:label": label}
    task = built(spec)
    plan = Plan(epochs=20, batch_size=24, learning_rate=3e-3, threads=1, precision="fp32", keep="last", average=0.95)
    for _ in train(task.train(), TrainingData(train=TensorStore(columns)), plan):
        pass
    asked = torch.tensor([[2, 9, 5 + code, 10, 3, 0] for code in range(3)]).repeat(8, 1)
    made = task.eval().sample(24, torch.Generator().manual_seed(0), steps=15, caption=asked).mean((1, 2, 3)) * 255
    assert [made[code::3].mean().item() for code in range(3)] == pytest.approx([40, 120, 200], abs=30)
    if spec is BOTH:
        made = task.sample(24, torch.Generator().manual_seed(0), steps=15).mean((1, 2, 3)) * 255  # classes in turn
        assert [made[code::3].mean().item() for code in range(3)] == pytest.approx([40, 120, 200], abs=30)
    shown = task.show({key: value[:9] for key, value in columns.items()})
    assert [tuple(value.shape) for value in shown.values()] == [(16, 1, 8, 8), (8, 1, 24, 8)]


def test_what_cannot_be_is_said_in_a_sentence() -> None:
    two = DataSpec(inputs=(IMAGE, WORDS, Field(name="more", kind="text", shape=(4,), vocabulary=12)), rows=4)
    assert "perhaps one text column" in diffuse.accepts(two)
    looks = DataSpec(inputs=(IMAGE, Field(name="kind", kind="category", classes=("<unknown>", "a"))), rows=4)
    assert "data.kinds.kind=text" in unet.accepts(looks) and "perhaps one text column" in dit.accepts(looks)
    for config in (unet.Config(conditional=False), unet.presets["unet_2015"]):
        with pytest.raises(ConfigError, match="would overlook column 'caption'"):
            unet.build(config, SAID)
    with pytest.raises(ConfigError, match="would overlook column 'caption'"):
        dit.build(dit.Config(conditional=False), SAID)
    untold = DataSpec(inputs=(IMAGE,), rows=40)
    with pytest.raises(ConfigError, match="cannot be told column 'caption'"):
        diffuse.build(Config(), SAID, NETWORKS["unet"](untold))
    with pytest.raises(ConfigError, match="not told captions"):
        built(untold).sample(1, torch.Generator(), caption=torch.zeros(1, 6))
