"""Texts become rows of tokens: deterministic, bounded, and reversible but for case."""

import json
import unicodedata

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fathom.core.errors import ArtifactError
from fathom.core.types import END, MASK, PAD, SPECIAL_TOKENS, START, UNK
from fathom.data import PrepareConfig, Preprocess, infer
from fathom.data._samples import find
from fathom.data.text import LONGEST_TOKEN, TextEncoder, learn_tokenizer, texts


@pytest.fixture(scope="module")
def verses():
    return pl.read_parquet(find("verses").path, columns=["text"]).get_column("text").gather_every(20)


def fit(series, case="lower", length=0, vocabulary=2000):
    return TextEncoder.fit("t", series, np.arange(len(series)), vocabulary, case, length)


@pytest.fixture(scope="module")
def encoder(verses):
    return fit(verses)


def encode(encoder, values):
    tokens = np.zeros((len(values), encoder.length), dtype=np.int32)
    cut = encoder.encode(pl.Series("t", values), tokens)
    return tokens, cut


def test_the_special_tokens_come_first(encoder):
    assert [encoder.trained.id_to_token(i) for i in (PAD, UNK, START, END, MASK)] == list(SPECIAL_TOKENS)
    assert 300 < encoder.output.vocabulary <= 2000


def test_the_same_texts_give_the_same_tokenizer(verses, encoder):
    assert learn_tokenizer(texts(verses, 10**6), 2000, "lower") == encoder.tokenizer


def test_a_row_is_start_tokens_end_padding(encoder):
    (row,), cut = encode(encoder, ["In the beginning"])
    end = row.tolist().index(END)
    assert row[0] == START and (row[end + 1 :] == PAD).all() and (row[1:end] > MASK).all() and cut == 0
    assert encoder.trained.decode(row[1:end].tolist()) == " in the beginning"


def test_empty_and_missing_texts_are_start_end(encoder):
    assert (encode(encoder, ["", None])[0][:, :3] == [START, END, PAD]).all()


def test_long_texts_lose_their_end(encoder):
    rows, cut = encode(encoder, ["word " * 10_000, "word"])
    assert cut == 1 and rows[0, -1] == END and (rows[0] != PAD).all()


def test_the_length_holds_99_in_100_training_texts(verses, encoder):
    _, cut = encode(encoder, verses)
    assert 0 < cut <= 0.01 * len(verses) and encoder.length % 8 == 0
    assert fit(pl.Series(["a b c"] * 5)).length == 8
    assert fit(pl.Series(["one two three four"] * 5), length=3).length == 3
    assert fit(pl.Series([" ".join(map(str, range(3000)))] * 3)).length == 512


def test_frequencies_are_shares_of_rows(encoder):
    rows, _ = encode(encoder, ["the lord", "the the", "lord of lords", ""])
    found = encoder.measured(rows).frequencies
    the = encoder.trained.token_to_id("Ġthe")
    assert (
        found[the] == 0.5
        and found[START] == found[END] == found[PAD] == 1.0
        and len(found) == encoder.output.vocabulary
    )


def test_case_is_one_unless_kept(verses, encoder):
    assert (encode(encoder, ["THE LORD"])[0] == encode(encoder, ["the lord"])[0]).all()
    kept = fit(verses, case="keep")
    assert (encode(kept, ["THE LORD"])[0] != encode(kept, ["the lord"])[0]).any()


def test_words_that_spell_special_tokens_are_only_words(encoder):
    rows, _ = encode(encoder, ["<pad> <mask> <start><end>"])
    assert (rows[0] == MASK).sum() == 0 and (rows[0] == START).sum() == 1 and (rows[0] == END).sum() == 1


def test_no_token_is_longer_than_its_limit(encoder):
    assert max(map(len, encoder.trained.get_vocab())) <= LONGEST_TOKEN


@settings(max_examples=300, deadline=None)
@example(text=" ")
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=40))
def test_every_text_can_be_told_from_its_tokens(encoder, text):
    long = TextEncoder(column="t", case="lower", length=400, tokenizer=encoder.tokenizer)
    row = encode(long, [text])[0][0]
    end = row.tolist().index(END)
    said = long.trained.decode(row[1:end].tolist())
    assert said == (" " if text else "") + "".join(c.lower() for c in unicodedata.normalize("NFC", text))


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.text(st.sampled_from("ab'’ \n\t.,:1é\u0301ßनé中\u0085"), max_size=20), max_size=5))
def test_tokens_by_pieces_are_those_of_the_whole_text(encoder, values):
    series = pl.Series(values, dtype=pl.String)
    for row, text in zip(encode(encoder, series)[0].tolist(), texts(series, 400), strict=True):
        assert row[1 : row.index(END)] == encoder.trained.encode(text).ids


def test_numbers_in_a_text_column_are_read_as_text(encoder):
    tokens = np.zeros((1, encoder.length), dtype=np.int32)
    encoder.encode(pl.Series([12.0]), tokens)
    assert (tokens == encode(encoder, ["12"])[0]).all()


def test_cut_texts_are_noted():
    frame = pl.DataFrame({"t": ["several words that differ", "a b c d e f g h i j"] * 4})
    prepared = Preprocess.fit(frame, infer(frame, kinds={"t": "text"}), config=PrepareConfig(text_length=6))[1]
    assert prepared.notes == ("Column 't': 4 texts are cut at 6 tokens.",)


def doctored(change):
    def apply(file):
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("{}"),
        lambda file: file.write_bytes(file.read_bytes()[:-200]),
        lambda file: file.write_bytes(b"\xff" + file.read_bytes()),
        doctored(lambda d: d["model"].update(type="WordPiece")),
        doctored(lambda d: d["model"]["vocab"].update({"new": 99_999})),
        doctored(lambda d: d["model"]["vocab"].update({"new": 2**70})),
        doctored(lambda d: d["model"]["vocab"].pop("<pad>")),
        doctored(lambda d: d["model"]["merges"].append(["no", "such"])),
        doctored(lambda d: d["model"]["merges"].append("a b")),
    ],
)
def test_a_doctored_tokenizer_is_refused(tmp_path, damage):
    frame = pl.DataFrame({"t": ["several words that differ", "and some more of them"] * 4})
    Preprocess.fit(frame, infer(frame, kinds={"t": "text"}))[0].save(tmp_path)
    damage(tmp_path / "tokenizer-0.json")
    with pytest.raises(ArtifactError, match=r"\.json"):
        Preprocess.load(tmp_path)


def test_a_doctored_pattern_in_a_tokenizer_has_no_effect(tmp_path):
    frame = pl.DataFrame({"t": ["several words that differ", "and some more of them"] * 4})
    preprocess = Preprocess.fit(frame, infer(frame, kinds={"t": "text"}))[0]
    preprocess.save(tmp_path)
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    doctored(lambda d: d.update(pre_tokenizer=split, normalizer=None))(tmp_path / "tokenizer-0.json")
    loaded = Preprocess.load(tmp_path)
    expected = preprocess.transform(frame).store.columns["text:t"]
    assert (loaded.transform(frame).store.columns["text:t"] == expected).all()
