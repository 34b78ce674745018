"""Models from elsewhere: the transformers library's, and timm's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import fathom
from fathom import transfer
from fathom.core import catalog
from fathom.core.errors import ArtifactError, ConfigError
from fathom.core.types import DataSpec, Field, Stats
from fathom.transfer import TransferConfig

QUICK: dict[str, Any] = {
    "engine": {"epochs": 2, "threads": 1, "precision": "fp32", "batch_size": 16},
    "evaluate": {"baselines": False},
}
LABEL = Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8))


def texts() -> pl.DataFrame:
    good = ["a sunny day by the sea", "what a fine and merry song", "the garden is full of light"]
    bad = ["rain and cold and no bread", "the dark house fell down", "he lost his way in the snow"]
    rows = [
        (f"{text} number {i}", label)
        for i in range(20)
        for label, kind in (("yes", good), ("no", bad))
        for text in kind
    ]
    return pl.DataFrame({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(20):
            pixels = draw.normal(level, 30, (20, 20)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def text_spec(length: int = 8, vocabulary: int = 40, **options: Any) -> DataSpec:
    field = Field(name="text", kind="text", shape=(length,), vocabulary=vocabulary, **options)
    return DataSpec(inputs=(field,), targets=(LABEL,), rows=16)


def image_spec(channels: int = 1, side: int = 16) -> DataSpec:
    stats = Stats(mean=(100.0,) * channels, std=(50.0,) * channels)
    field = Field(name="photo", kind="image", shape=(channels, side, side), stats=stats)
    return DataSpec(inputs=(field,), targets=(LABEL,), rows=16)


def saved(kind: str, folder: Path, **options: Any) -> Any:
    """Save a tiny random model of the library's as it would be published, and return it."""
    transformers = pytest.importorskip("transformers")
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    sizes = {
        "bert": {**small, "vocab_size": 40, "max_position_embeddings": 64},
        "roberta": {**small, "vocab_size": 40, "max_position_embeddings": 66},
        "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40},
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 64},
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 40},
        "vit": {**small, "image_size": 16, "patch_size": 4},
        "deit": {**small, "image_size": 16, "patch_size": 4},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
        "convnext": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 16},
        "swin": {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
    }
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **{**sizes[kind], **options})
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def encoder(folder: Path, spec: DataSpec, **options: Any) -> tuple[Any, list[str]]:
    """Return the model as a fit would begin with it, in evaluation mode, and what is said of its weights."""
    entry = catalog.find("models", f"hf:{folder}")
    config = entry.module.complete(type(entry.config)(source=str(folder), **options), spec)
    network = entry.module.build(config, spec).eval()
    return network, entry.module.fill(network, config)


TEXT_KINDS = ("bert", "roberta", "distilbert", "gpt2", "t5")
IMAGE_KINDS = ("vit", "deit", "resnet", "convnext", "swin")


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_an_encoder_of_texts_gives_what_the_library_gives(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path)
    theirs = theirs.get_encoder() if kind == "t5" else theirs
    pad = theirs.config.pad_token_id or 0
    network, notes = encoder(tmp_path, text_spec(special=(pad, 3, 4, 5, 6)))
    tokens = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14], [9, 9, 20, pad, pad, pad, pad, pad]])
    with torch.no_grad():
        found = network({"text:text": tokens.int()})
        expected = theirs(input_ids=tokens, attention_mask=(tokens != pad).long()).last_hidden_state
    real = tokens != pad
    torch.testing.assert_close(found.tokens[real], expected[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled[1], expected[1, :3].mean(0), rtol=1e-5, atol=1e-5)
    assert network.width == 16
    assert not any("Learned from the start" in note for note in notes)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_an_encoder_of_images_gives_what_the_library_gives(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path)
    network, notes = encoder(tmp_path, image_spec(3))
    batch = {"image:photo": torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)}
    with torch.no_grad():
        found = network(batch)
        expected = theirs(pixel_values=network.normalize(batch["image:photo"]))
    last = expected.last_hidden_state
    if last.dim() == 4:
        torch.testing.assert_close(found.maps[0], last, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.pooled, expected.pooler_output.flatten(1), rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(found.tokens, last, rtol=1e-5, atol=1e-5)
        pooled = last.mean(1) if kind == "swin" else last[:, 0]
        torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert found.pooled.shape == (2, network.width)
    assert not any("Learned from the start" in note for note in notes), notes


def with_tokens(folder: Path) -> list[str]:
    """Save a tiny model of texts with the tokenizer that it was trained with, and return its words."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    plain = sorted({word for text in texts()["text"] for word in text.split()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *plain]
    saved("bert", folder, vocab_size=len(words))
    found = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    found.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=found, **roles).save_pretrained(folder)
    return words


def test_texts_are_read_by_the_tokens_of_the_published_model(tmp_path: Path) -> None:
    words = with_tokens(tmp_path / "m")
    model = fathom.fit(texts(), "label", model=f"hf:{tmp_path / 'm'}", freeze=True, config=QUICK, out=tmp_path / "out")
    encoder = model.artifact.preprocess.texts[0]
    row = encoder.trained.encode("a sunny day").ids[:5]
    assert [words[token] for token in row] == ["[CLS]", "a", "sunny", "day", "[SEP]"]
    notes = json.loads(model.files["evidence.json"])["data"]["notes"]
    assert not any("vocabulary of its own" in note or "No tokenizer" in note for note in notes), notes
    assert any("3 of 3 layers stay as they were" in note for note in notes), notes  # the embeddings and two blocks
    published = pytest.importorskip("transformers").AutoModel.from_pretrained(tmp_path / "m").state_dict()
    network: Any = model.module.model
    ours = network.network.state_dict()
    assert ours and all(torch.equal(ours[name], published[name]) for name in ours)
    assert fathom.load(tmp_path / "out").predict(texts()).equals(model.predict(texts()))


def test_what_was_trained_on_such_a_model_is_learned_on_from_without_its_source(tmp_path: Path) -> None:
    with_tokens(tmp_path / "m")
    first = fathom.fit(texts(), "label", model=f"hf:{tmp_path / 'm'}", config=QUICK, out=tmp_path / "first")
    shutil.rmtree(tmp_path / "m")
    second = fathom.fit(texts(), "label", weights=tmp_path / "first", freeze=True, config=QUICK)
    ours, theirs = second.module.model.state_dict(), first.module.model.state_dict()
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_layers_of_another_librarys_encoder_are_told_apart(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    network, _ = encoder(tmp_path, text_spec())
    said = transfer.settle(network, TransferConfig(freeze=0.5))
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert said == ["2 of 3 layers stay as they were loaded."]
    assert any("embeddings" in name for name in still) and not any("layer.1." in name for name in still)


@pytest.mark.parametrize("kind", [*TEXT_KINDS, *IMAGE_KINDS])
def test_every_weight_learns(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    image = kind in IMAGE_KINDS
    network, _ = encoder(tmp_path, image_spec(3) if image else text_spec())
    batch = (
        {"image:photo": torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)}
        if image
        else {"text:text": torch.randint(5, 40, (3, 8), dtype=torch.int32)}
    )
    network.train()(batch).pooled.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_another_vocabulary_gets_vectors_of_its_own_and_the_rest_is_kept(tmp_path: Path) -> None:
    theirs = saved("roberta", tmp_path)  # counts positions from its padding token, 1; ours is 0
    network, notes = encoder(tmp_path, text_spec(vocabulary=55))
    told = " ".join(notes)
    assert "vocabulary of its own (55 tokens, published 40)" in told and "word_embeddings" in told
    ours = network.network.state_dict()
    differing = [
        name for name, value in theirs.state_dict().items() if name in ours and ours[name].shape != value.shape
    ]
    assert differing == ["embeddings.word_embeddings.weight"]
    torch.testing.assert_close(
        ours["encoder.layer.1.output.dense.weight"], theirs.state_dict()["encoder.layer.1.output.dense.weight"]
    )
    with torch.no_grad():
        long = network({"text:text": torch.tensor([[7, 1, 9, 0, 0, 0, 0, 0]])})
        short = network({"text:text": torch.tensor([[7, 1, 9]])})
    torch.testing.assert_close(long.tokens[:, :3], short.tokens, rtol=1e-5, atol=1e-5)  # padding is not seen
    assert long.mask.sum() == 3 and long.pooled.isfinite().all()


def test_an_empty_text_has_finite_features(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    network, _ = encoder(tmp_path, text_spec())
    assert network({"text:text": torch.zeros(2, 8, dtype=torch.int32)}).pooled.isfinite().all()


def test_grey_images_of_another_size_take_averaged_and_interpolated_weights(tmp_path: Path) -> None:
    theirs = saved("vit", tmp_path)
    network, notes = encoder(tmp_path, image_spec(1, 20), image_size=24)
    told = " ".join(notes)
    assert "3 channels are averaged for 1" in told and "17 positions are interpolated to 37" in told
    assert network({"image:photo": torch.zeros(2, 1, 20, 20, dtype=torch.uint8)}).tokens.shape == (2, 37, 16)
    patches = next(name for name in theirs.state_dict() if name.endswith("projection.weight"))
    torch.testing.assert_close(
        network.network.state_dict()[patches], theirs.state_dict()[patches].mean(1, keepdim=True) * 3
    )


def test_it_is_trained_kept_and_rebuilt_without_its_source(tmp_path: Path) -> None:
    saved("distilbert", tmp_path / "published")
    model = fathom.fit(texts(), "label", model=f"hf:{tmp_path / 'published'}", config=QUICK, out=tmp_path / "out")
    expected = model.predict(texts())
    for file in (tmp_path / "published").iterdir():
        file.unlink()
    (tmp_path / "published").rmdir()
    loaded = fathom.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.predict(texts())["probability"], expected["probability"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["model"]
    settings = json.loads(config["config"]["settings"])
    assert config["config"]["width"] == 16 and settings["model_type"] == "distilbert" and settings["n_layers"] == 2
    assert model.report() and "hf:" in model.summary()


def test_images_in_a_folder_are_learned_by_an_encoder_of_the_library(photos: Path, tmp_path: Path) -> None:
    saved("convnext", tmp_path / "published")
    given = {**QUICK, "model": {"image_size": 12}}
    model = fathom.fit(photos, model=f"hf:{tmp_path / 'published'}", config=given, out=tmp_path / "out")
    expected = model.predict(photos)
    np.testing.assert_array_equal(fathom.load(tmp_path / "out").predict(photos)["probability"], expected["probability"])


def test_the_same_options_repeat_the_run(tmp_path: Path) -> None:
    saved("bert", tmp_path / "published")
    first = fathom.fit(texts(), "label", model=f"hf:{tmp_path / 'published'}", config=QUICK, out=tmp_path / "out")
    again = fathom.fit(texts(), "label", config=tmp_path / "out" / "config.toml")
    np.testing.assert_array_equal(again.predict(texts())["probability"], first.predict(texts())["probability"])


def test_it_exports_as_one_graph(tmp_path: Path) -> None:
    for kind, spec, batch in (
        ("bert", text_spec(), {"text:text": torch.randint(5, 40, (2, 8), dtype=torch.int32)}),
        ("vit", image_spec(3), {"image:photo": torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)}),
    ):
        saved(kind, tmp_path / kind)
        network, _ = encoder(tmp_path / kind, spec)

        class Pooled(torch.nn.Module):
            def __init__(self, inner: torch.nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
                return self.inner(batch).pooled

        with torch.no_grad():
            exported = torch.export.export(Pooled(network), (batch,)).module()
            torch.testing.assert_close(exported(batch), network(batch).pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "spec", "told"),
    [
        ("bert", image_spec(), "takes texts; column 'photo' is image"),
        ("vit", text_spec(), "takes images; column 'text' is text"),
        ("bert", text_spec(length=65), r"up to 65 tokens.*reads 64: set prepare\.text_length=64"),
        ("roberta", text_spec(length=65), r"reads 64: set prepare\.text_length=64"),
    ],
)
def test_data_that_it_cannot_take_is_refused(kind: str, spec: DataSpec, told: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    with pytest.raises(ConfigError, match=told):
        encoder(tmp_path, spec)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    model = saved("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be had as safetensors"):
        encoder(tmp_path, text_spec())
    _, notes = encoder(tmp_path, text_spec(), weights=False)
    assert "fresh weights" in notes[0]


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    network, _ = encoder(tmp_path, text_spec())
    assert type(network.network).__module__.startswith("transformers.")
    (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": "unheard_of"}))
    with pytest.raises(ConfigError):
        encoder(tmp_path, text_spec())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("no json", "is not the JSON"),
        ("[1]", "is not the JSON"),
        ('{"model_type": "unheard_of"}', "no encoder of type 'unheard_of'"),
        ('{"model_type": "bert", "num_hidden_layers": 1000000000}', "whole numbers go up to"),
        ('{"model_type": "dpt", "backbone": "microsoft/resnet-50"}', "built around another model"),
        ('{"model_type": "timm_wrapper", "architecture": "resnet18"}', "no encoder of type 'timm_wrapper'"),
        (
            '{"model_type": "bert", "vocab_size": 40, "hidden_size": 60000000}',
            "far larger model|is not divisible|multiple",
        ),
    ],
)
def test_an_artifact_with_hostile_settings_is_refused(settings: str, told: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    saved("bert", tmp_path / "published")
    fathom.fit(texts(), "label", model=f"hf:{tmp_path / 'published'}", config=QUICK, out=tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    document = json.loads(path.read_text())
    document["model"]["config"]["settings"] = settings
    path.write_text(json.dumps(document))
    from fathom import artifact

    artifact.seal(tmp_path / "out", "config.json")
    with pytest.raises(ArtifactError, match=told):
        fathom.load(tmp_path / "out")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"'hf:.*nowhere' has no configuration"):
        encoder(tmp_path / "nowhere", text_spec())


def test_without_the_library_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        fathom.fit(texts(), "label", model="hf:bert-base-uncased", config=QUICK)


@pytest.fixture
def timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision is of another torch
        pytest.skip(f"timm cannot be imported: {error}")
    return timm


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_an_encoder_of_timm_gives_what_the_library_gives(architecture: str, timm: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = timm.create_model(architecture).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    entry = catalog.find("models", f"timm:{architecture}@{tmp_path / 'weights.safetensors'}")
    spec = image_spec(3, 40)
    config = entry.module.complete(entry.config, spec)
    network = entry.module.build(config, spec).eval()
    entry.module.fill(network, config)
    batch = {"image:photo": torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)}
    scaled = torch.nn.functional.interpolate(network.normalize(batch["image:photo"]), size=(224, 224), mode="bilinear")
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(scaled), pre_logits=True)
        torch.testing.assert_close(network(batch).pooled, expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_of_timm_is_trained_kept_and_rebuilt(timm: Any, photos: Path, tmp_path: Path) -> None:
    given = {**QUICK, "model": {"weights": False, "image_size": 32}}
    model = fathom.fit(photos, model="timm:convnext_atto", config=given, out=tmp_path / "out")
    expected = model.predict(photos)["probability"]
    np.testing.assert_array_equal(fathom.load(tmp_path / "out").predict(photos)["probability"], expected)


def test_an_architecture_that_timm_has_not_is_refused(timm: Any, photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"timm has no architecture 'resnet18x'.*'resnet18'"):
        fathom.fit(photos, model="timm:resnet18x", config=QUICK)


def test_without_timm_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        fathom.fit(photos, model="timm:resnet18", config=QUICK)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{}", "is not the JSON"),
        ('{"architecture": "resnet18", "arguments": {"pretrained": true}, "image_size": 32}', "is not the JSON"),
        ('{"architecture": "hf-hub:evil/model", "arguments": {}, "image_size": 32}', "no architecture of timm's own"),
        ('{"architecture": "resnet18", "arguments": {}, "image_size": 1000000}', "is not the JSON"),
    ],
)
def test_hostile_settings_of_timm_are_refused(settings: str, told: str) -> None:
    entry = catalog.find("models", "timm:resnet18")
    with pytest.raises(ConfigError, match=told):
        entry.module.build(type(entry.config)(source="resnet18", settings=settings, width=512), image_spec())
