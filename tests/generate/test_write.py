"""Texts as they come: whole characters, stop texts, ends, seeds, room; and what is drawn."""

from __future__ import annotations

import pytest
import torch

from fathom.core.errors import ConfigError, DataError
from fathom.core.types import DataSpec, Field
from fathom.generate import Script, Settings, stream, write
from fathom.generate.choose import choose
from fathom.generate.pieces import Pieces
from fathom.models import llama, mlp

FIELD = Field(name="text", kind="text", shape=(20,), vocabulary=256, special=(-1, -1, -1, -1, -1))


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def spelt(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def model(context: int = 64, seed: int = 0) -> llama.Llama:
    torch.manual_seed(seed)
    return llama.build(llama.Config(16, 1, 2, 1, hidden=16, context=context), DataSpec(inputs=(FIELD,))).eval()


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    found, given = Pieces(spelt, stop), []
    for token in bytes_of(text):
        given.append(found.add(token))
        if found.stopped:
            return given, True
    return [*given, found.close()], found.stopped


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語のテキスト", "a👩‍👩‍👧b", "�", "e\u0301"])
def test_pieces_never_break_a_character_and_make_up_the_text(text):
    given, stopped = pieces(text)
    assert "".join(given) == text and not stopped
    for piece in given:
        assert piece.encode().decode() == piece
        if "�" not in text:
            assert "�" not in piece


def test_bytes_that_are_no_character_come_out_at_the_end():
    found = Pieces(spelt)
    assert [found.add(token) for token in (0x61, 0xE6, 0x97)] == ["a", "", ""]
    assert found.close() == "�"


def test_a_word_apart_from_the_prompt_keeps_its_space():
    """As sentence pieces do it, the first token's space shows only where something stands before it."""

    def decode(tokens: list[int]) -> str:
        return " ".join("wörd" for _ in tokens)

    assert Pieces(decode, before=[1, 2]).add(3) == " wörd"
    assert Pieces(decode).add(3) == "wörd"


def test_a_token_without_a_text_parts_nothing():
    """A special token that decoding leaves out stands between two words: the space between them stays."""

    def decode(tokens: list[int]) -> str:
        return " ".join("word" for token in tokens if token)

    found = Pieces(decode)
    assert "".join(found.add(token) for token in (1, 0, 0, 1, 1, 0, 1)) == decode([1, 1, 1, 1])


@pytest.mark.parametrize(
    ("text", "stop", "shown", "stopped"),
    [
        ("one two three", ("two",), "one ", True),
        ("one tw", ("two",), "one tw", False),
        ("aab", ("ab",), "a", True),
        ("x\n\ny", ("\n\n", "y"), "x", True),
        ("naïve", ("ve", "ï"), "na", True),
        ("ab", ("abc", "b"), "a", True),
    ],
)
def test_a_stop_text_ends_the_text_and_is_never_shown(text, stop, shown, stopped):
    given, found = pieces(text, stop)
    assert ("".join(given), found) == (shown, stopped)


def test_pieces_of_a_stream_make_up_the_text():
    script, settings = Script(spelt, FIELD), Settings(tokens=30, temperature=2.0)
    prompts = [bytes_of("a"), bytes_of("longer prompt")]
    whole = write(model(), prompts, script, settings)
    parts = ["", ""]
    for piece in stream(model(), prompts, script, settings):
        parts[piece.row] += piece.text
    assert parts == [text.text for text in whole] == [spelt(list(text.tokens)) for text in whole]


def test_the_same_seed_writes_the_same_and_another_something_else():
    script, prompts = Script(spelt, FIELD), [bytes_of("abc")] * 2
    first, again, other = (
        write(model(), prompts, script, Settings(tokens=20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[0].tokens != first[1].tokens


def test_company_changes_nothing_of_a_greedy_text():
    script, settings, network = Script(spelt, FIELD), Settings(tokens=20), model()
    prompts = [bytes_of("a"), bytes_of("bcd"), bytes_of("efghij klm")]
    together = write(network, prompts, script, settings)
    assert together == [write(network, [prompt], script, settings)[0] for prompt in prompts]


def test_an_end_token_ends_its_row_alone():
    network, prompts = model(), [bytes_of("a"), bytes_of("bcd")]
    free = write(network, prompts, Script(spelt, FIELD), Settings(tokens=12))
    ends = frozenset({free[0].tokens[3]})
    first = free[0].tokens.index(free[0].tokens[3])
    found = write(network, prompts, Script(spelt, FIELD, ends), Settings(tokens=12))
    assert (found[0].tokens, found[0].reason) == (free[0].tokens[:first], "end")
    assert [text.reason for text in free] == ["length", "length"]
    assert found[1].tokens == tuple(t for i, t in enumerate(free[1].tokens) if not ends & set(free[1].tokens[: i + 1]))


def test_a_stop_text_ends_its_row():
    network, prompts = model(), [bytes_of("a")]
    free = write(network, prompts, Script(spelt, FIELD), Settings(tokens=12))[0]
    stop = spelt([free.tokens[-1]])
    if stop == "�":
        stop = free.text[-1]
    found = write(network, prompts, Script(spelt, FIELD), Settings(tokens=12, stop=(stop,)))[0]
    assert found.reason == "stop" and found.text == free.text[: free.text.index(stop)]


def test_a_context_bounds_what_is_written():
    found = write(model(context=20), [bytes_of("x" * 15)], Script(spelt, FIELD), Settings(tokens=50))[0]
    assert len(found.tokens) == 5 and found.reason == "length"
    with pytest.raises(DataError, match=r"A prompt has 20 tokens; .* context of 20 leaves no room"):
        write(model(context=20), [bytes_of("x" * 20)], Script(spelt, FIELD), Settings())
    with pytest.raises(DataError, match="A prompt is empty"):
        write(model(), [bytes_of("x"), []], Script(spelt, FIELD), Settings())


def test_other_models_are_refused():
    other = mlp.build(mlp.Config(), mlp.example())
    with pytest.raises(ConfigError, match="does not write texts; a language model such as gpt"):
        write(other, [[1]], Script(spelt, FIELD), Settings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "'tokens' was given 0; expected 1 or more"),
        ({"temperature": -1.0}, "'temperature' was given -1.0"),
        ({"temperature": float("nan")}, "'temperature' was given nan"),
        ({"top_k": -1}, "'top_k' was given -1"),
        ({"top_p": 0.0}, "'top_p' was given 0.0; expected more than 0"),
        ({"beams": 0}, "'beams' was given 0"),
        ({"beams": 2, "temperature": 1.0}, "give one of the two"),
        ({"stop": ("",)}, "'stop' was given an empty text"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**options)


def test_tokens_are_drawn_as_often_as_they_are_probable():
    scores = torch.tensor([0.0, 1.0, 2.0, -1.0])
    draw = torch.Generator().manual_seed(0)
    drawn = choose(scores.expand(200_000, 4), Settings(temperature=1.5, top_k=3), draw)
    shares = torch.bincount(drawn, minlength=4) / 200_000
    expected = torch.cat([(scores[:3] / 1.5).softmax(0), torch.zeros(1)])
    torch.testing.assert_close(shares, expected, atol=0.005, rtol=0)
    assert choose(scores.expand(3, 4), Settings(), draw).tolist() == [2, 2, 2]
