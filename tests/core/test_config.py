"""One description of options, read from dicts, TOML and flags, with errors that name the key."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from fathom.core.config import as_dict, at_least, below_one, build, describe, option, override, read_toml, to_toml
from fathom.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.1, "a rate")


@dataclass(frozen=True)
class Outer:
    depth: int = option(2, "layers")
    kind: Literal["plain", "fancy"] = option("plain", "which")
    sizes: tuple[int, ...] = option((), "sizes")
    inner: Inner = field(default_factory=Inner, metadata={"help": "more"})


def test_values_travel_through_toml() -> None:
    given = Outer(depth=3, kind="fancy", sizes=(1, 2), inner=Inner(rate=0.5))
    assert build(Outer, tomllib.loads(to_toml(as_dict(given)))) == given


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"dept": 3}, "'model.dept'.*'depth'"),
        ({"depth": "three"}, "'model.depth'.*'three'.*whole number"),
        ({"depth": 2.5}, "'model.depth'.*whole number"),
        ({"kind": "fancey"}, "plain, fancy.*'fancy'"),
        ({"sizes": [1, "two"]}, "'model.sizes'.*a list, each a whole number"),
        ({"inner": {"rat": 1}}, "'model.inner.rat'.*'rate'"),
    ],
)
def test_what_does_not_fit_is_named(values: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(Outer, values, "model")


def test_settings_are_laid_over_values() -> None:
    found = override(
        {"model": {"depth": 1}}, ["model.depth=12", "model.kind=fancy", "engine.rate=1e-3", "a.b.c=[1, 2]"]
    )
    assert found == {"model": {"depth": 12, "kind": "fancy"}, "engine": {"rate": 1e-3}, "a": {"b": {"c": [1, 2]}}}


@pytest.mark.parametrize("setting", ["depth", "=3", "model.depth.more=3"])
def test_a_setting_of_another_form_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        override({"model": {"depth": 1}}, [setting])


def test_files_that_are_no_toml_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("depth = = 3")
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe")
    for name in ("bad.toml", "odd.toml", "missing.toml"):
        with pytest.raises(ConfigError, match=name):
            read_toml(tmp_path / name)


def test_options_describe_themselves() -> None:
    assert describe(Outer)[:2] == [
        ("depth", "a whole number", 2, "layers"),
        ("kind", "plain | fancy", "plain", "which"),
    ]


def test_the_nearest_name_is_offered() -> None:
    assert did_you_mean("resnt18", ["resnet18", "bag"]) == " Did you mean 'resnet18'?"
    assert did_you_mean("zzz", ["resnet18", "bag"]) == " Known: resnet18, bag."
    assert did_you_mean("zzz", []) == ""


def test_options_out_of_range_are_refused_by_name():
    @dataclass(frozen=True)
    class Given:
        depth: int = 1
        widths: tuple[int, ...] = ()
        dropout: float = 0.0

    at_least(Given(), {"depth": 1, "widths": 1})
    below_one(Given(), "dropout")
    with pytest.raises(ConfigError, match=r"'model\.depth' was given 0; expected 1 or more"):
        at_least(Given(depth=0), {"depth": 1})
    with pytest.raises(ConfigError, match=r"'model\.widths' was given -2; expected 1 or more"):
        at_least(Given(widths=(4, -2)), {"depth": 1, "widths": 1})
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"'model\.dropout' was given .* expected at least 0 and below 1"):
            below_one(Given(dropout=share), "dropout")
