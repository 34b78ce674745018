"""The report as a page: whole, safe with hostile data, small, and showing the evidence's own numbers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from fathom.core.errors import ArtifactError
from fathom.core.types import Field
from fathom.evaluate import (
    Baseline,
    ColumnEvidence,
    DataEvidence,
    Evidence,
    RunEvidence,
    SetAsideEvidence,
    TargetEvidence,
    appraise,
    from_json,
    report,
    score,
    to_json,
)

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too' {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}  # of HTML; SVG closes its own


class Page(HTMLParser):
    """Collects what the page holds, and checks that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def judged(classes: int = 4, rows: int = 300, name: str = "label", labels: str = "class") -> list[TargetEvidence]:
    rng = np.random.default_rng(0)
    target = Field(name=name, kind="category", classes=tuple(f"{labels} {i}" for i in range(classes)))
    truth = rng.integers(0, classes, rows)
    p = rng.random((rows, classes)) + 0.6 * np.eye(classes)[truth]
    p /= p.sum(1, keepdims=True)
    simple = rng.random((rows, classes))
    main = score((target,), {name: simple}, {name: truth}, resamples=20)[name]
    return appraise(
        (target,),
        {name: p},
        {name: truth},
        rivals=[Baseline("logistic regression", name, main["main"], main["metrics"], 0.1, "on few rows", simple)],
        images={"photo": rng.integers(0, 256, (rows, 1, 28, 28), dtype=np.uint8)},
        texts={"log": [f"{labels} said {i}" for i in range(rows)]},
        columns={f"{labels} town": [["north", "south"][i % 2] for i in range(rows)]},
        resamples=50,
    )


def priced(rows: int = 200) -> list[TargetEvidence]:
    rng = np.random.default_rng(1)
    truth = np.exp(rng.normal(6, 1, rows))
    columns = {"carat": truth / 1000}
    return appraise(
        (Field(name="price", kind="number"),), {"price": truth * 1.05}, {"price": truth}, columns=columns, resamples=50
    )


def evidence(targets: list[TargetEvidence], words: str = "plain") -> Evidence:
    epochs = [{"epoch": i, "train_loss": 1 / (i + 1), "loss": 1.2 / (i + 1), "error": 0.5 / (i + 1)} for i in range(9)]
    return Evidence(
        title=words,
        created="2026-01-02T03:04:05",
        data=DataEvidence(
            source=words,
            rows=1234,
            columns=[ColumnEvidence(name=words, kind="text", why=words, examples=[words])],
            splits={"train": 900, "valid": 34, "test": 300},
            how_split=words,
            overlaps=3,
            classes={"label": {"rare": 5, "common": 895}},
            set_aside=[SetAsideEvidence(where=words, row=7, column=words, reason=words)],
            set_aside_count=51,
            notes=[words],
        ),
        run=RunEvidence(
            model=words,
            why=words,
            parameters=61_706,
            epochs=epochs,
            best_epoch=5,
            stopped=words,
            seconds=84.2,
            tuner=[{"what": words, "chosen": words, "why": words}],
            settings={words: words},
        ),
        targets=targets,
        environment={words: words},
        commands=[(words, words)],
    )


@pytest.fixture(scope="module")
def category() -> Evidence:
    return evidence(judged())


def test_evidence_comes_back_from_json_as_it_was(category):
    stored = to_json(category)
    assert to_json(from_json(stored)) == stored
    assert from_json(stored) == category


DEEP = b'{"run":{"settings":{"a":' + b"[" * 100_000


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"version": 99}', b'{"title": 5}', b"\xff\xfe", DEEP])
def test_damaged_evidence_is_refused(damaged):
    with pytest.raises(ArtifactError, match="evidence"):
        from_json(damaged)


def test_the_page_shows_the_evidences_numbers(category):
    html = report(category)
    page = Page(html)
    target = category.targets[0]
    accuracy = target.score["metrics"]["accuracy"]
    assert f"{100 * accuracy['value']:.1f}\N{NO-BREAK SPACE}%" in page.text
    assert f"{100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f}" in page.text
    assert target.verdict["sentence"] in page.text
    for row in target.score["confusion"]["counts"]:
        assert all(str(count) in page.text for count in row)
    assert "61,706 parameters" in page.text
    assert "on few rows" in page.text
    assert "3 test rows also stand in training" in page.text
    assert "Set aside: 51" in page.text
    assert "label: 2 classes, from 5 training rows (rare) to 895 (common)." in page.text
    assert "Time to train: this model 84 s, logistic regression 0.1 s." in page.text
    pictures = [mistake["images"]["photo"] for mistake in target.mistakes]
    assert [image["src"] for image in page.of("img")] == pictures
    assert len(pictures) == 24


def test_the_page_needs_nothing_from_elsewhere(category):
    page = Page(report(category))
    for _, attributes in page.tags:
        for name in ("src", "href", "data", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not page.of("script")
    assert not page.of("link")
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in report(category).replace("http-equiv", "")


def test_hostile_words_are_words():
    hostile = evidence(judged(name=HOSTILE, labels=HOSTILE), HOSTILE)
    html = report(hostile)
    page = Page(html)
    assert not page.of("script")
    assert all(set(image) == {"src", "alt"} and image["src"].startswith("data:") for image in page.of("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_an_image_that_is_not_one_is_not_shown(category):
    mistake = category.targets[0].mistakes[0] | {"images": {"photo": "https://example.org/track.png"}}
    changed = replace(category, targets=[replace(category.targets[0], mistakes=[mistake])])
    assert Page(report(changed)).of("img") == []
    sneaky = mistake | {"images": {"photo": 'data:image/png;base64,AAAA" onload="x'}}
    changed = replace(category, targets=[replace(category.targets[0], mistakes=[sneaky])])
    assert Page(report(changed)).of("img") == []


def test_numbers_have_their_own_charts():
    found = priced()
    page = Page(report(evidence(found)))
    rmse = found[0].score["metrics"]["rmse"]["value"]
    assert f"{rmse:.1f}" in page.text or f"{rmse:,.0f}" in page.text
    assert "Its largest misses" in page.text
    assert len([c for c in page.of("circle") if c["class"] == "point"]) == 200
    assert page.of("polygon")[0]["class"] == "band"
    assert "What it takes for what" not in page.text


def test_several_targets_share_a_page():
    page = Page(report(evidence(judged() + priced())))
    assert page.text.count("How good it is") == 2


def test_a_thousand_classes_of_long_names_stay_small_and_readable():
    many = evidence(judged(classes=1000, rows=1500, labels="a name that never seems to end " * 8))
    html = report(many)
    assert len(html) < 1_000_000
    assert "Of 1,000 classes" in Page(html).text


def test_right_to_left_names_are_kept_apart():
    html = report(evidence(judged(labels="שלום עולם")))
    Page(html)
    assert "<bdi>שלום עולם 0</bdi>" in html


def test_bare_evidence_still_makes_a_page():
    assert "A model" in Page(report(Evidence())).text
    target = Field(name="y", kind="category", classes=("a", "b"))
    for rows in (1, 2):
        single = appraise((target,), {"y": np.tile([0.7, 0.3], (rows, 1))}, {"y": np.zeros(rows, int)})
        Page(report(Evidence(targets=single)))
    numbers = Field(name="y", kind="number")
    for truth in (np.array([3.0]), np.array([3.0, 3.0]), np.zeros(0)):
        Page(report(Evidence(targets=appraise((numbers,), {"y": truth * 1.0}, {"y": truth}))))


def test_the_page_says_whose_rows_it_was_judged_by(category):
    assert "rows that it never saw" in Page(report(category)).text
    assert "rows that it learned from" in Page(report(replace(category, judged_on="training"))).text


def places(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """Yield the way to everything in a JSON value: of lists, only to the first entry."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in inside:
        yield (*way, key)
        yield from places(entry, (*way, key))


MISSING = object()


@pytest.mark.parametrize("damage", [MISSING, None, "x"])
def test_evidence_changed_by_hand_makes_a_page_or_is_refused_in_a_sentence(damage):
    whole = to_json(evidence(judged(classes=2, rows=60) + priced(60)))
    refused = 0
    for *way, last in places(json.loads(whole)["targets"], ("targets",)):
        changed = json.loads(whole)
        parent = changed
        for key in way:
            parent = parent[key]
        if damage is MISSING:
            del parent[last]
        else:
            parent[last] = damage
        try:
            Page(report(from_json(json.dumps(changed).encode())))
        except ArtifactError as error:
            refused += 1
            assert "evidence" in str(error) and "\n" not in str(error)
    assert refused > 10


def test_the_page_is_the_same_from_a_file(category):
    settings = {"data.target": ("a", "b"), "data.kinds": {"a": "text"}, "engine.amp": True, "split.group": None}
    changed = replace(category, run=replace(category.run, settings=settings))
    assert report(from_json(to_json(changed))) == report(changed)
    assert "[a, b]" in Page(report(changed)).text


def test_a_missing_main_metric_is_refused(category):
    scored = {key: value for key, value in category.targets[0].score.items() if key != "main"}
    damaged = replace(category, targets=[replace(category.targets[0], score=scored)])
    with pytest.raises(ArtifactError, match="'main'"):
        report(damaged)


def test_nothing_is_said_of_test_rows_where_there_are_none(category):
    words = "No test row also stands in training."
    clean = replace(category, data=replace(category.data, overlaps=0))
    assert words in Page(report(clean)).text
    for splits in ({"train": 900, "valid": 34}, {"train": 900}, {}):
        assert words not in Page(report(replace(clean, data=replace(clean.data, splits=splits)))).text


def test_a_comparison_on_rows_that_chose_the_weights_says_so(category):
    words = "the comparison leans towards the model"
    assert words not in Page(report(category)).text
    assert words in Page(report(replace(category, judged_on="validation"))).text
    alone = replace(category, judged_on="validation", targets=priced())
    assert words not in Page(report(alone)).text


@pytest.mark.parametrize(("classes", "told"), [(40, "10 more classes, all"), (400, "170 are listed")])
def test_classes_that_are_folded_away_or_left_out_are_counted(classes, told):
    rows = classes * 8
    target = Field(name="y", kind="category", classes=tuple(f"class {i}" for i in range(classes)))
    truth = np.arange(rows) % classes
    p = np.full((rows, classes), 0.1 / classes) + 0.9 * np.eye(classes)[truth]
    page = Page(report(Evidence(targets=appraise((target,), {"y": p}, {"y": truth}, resamples=10))))
    assert f"{classes - 30} more classes" in page.text
    assert told in page.text


def test_columns_and_parts_that_are_left_out_are_counted(category):
    columns = [ColumnEvidence(name=f"c{i}", kind="number") for i in range(1100)]
    part = {"column": "town", "value": "x", "count": 30, "error": 0.1, "low": 0.0, "high": 0.2, "others": 0.1}
    parts = [part | {"p": 1.0, "worse": False}] * 70
    many = replace(
        category,
        data=replace(category.data, columns=columns),
        targets=[replace(category.targets[0], slices=parts)],
    )
    text = Page(report(many)).text
    assert "1,060 more columns; the next 960 are listed" in text
    assert "The worst 60 of the parts that were looked at" in text
    assert "All parts that were looked at" in Page(report(category)).text


def test_rows_of_a_class_never_seen_in_training_are_told_of():
    target = Field(name="y", kind="category", classes=("a", "b"))
    p, truth = np.tile([0.7, 0.3], (40, 1)), np.where(np.arange(40) < 4, -1, 0)
    found = appraise((target,), {"y": p}, {"y": truth}, columns={"town": ["x"] * 40}, resamples=20)
    assert found[0].score["unseen"] == 4
    assert found[0].calibration["accuracy"] == 1.0  # of the classes that it knows
    assert (
        "4 rows have a class never seen in training; each counts as an error"
        in Page(report(Evidence(targets=found))).text
    )
    assert "never seen in training" not in Page(report(Evidence(targets=judged()))).text


def test_folders_of_the_users_machine_are_not_told():
    folder = "/home/ann/private"
    told = Evidence(
        data=DataEvidence(
            source=f"{folder}/photos/",
            set_aside=[
                SetAsideEvidence(where=f"{folder}/photos/cats/1.png"),
                SetAsideEvidence(where=f"{folder}/other/test.csv", row=3),
                SetAsideEvidence(where="the table", row=4),
            ],
        ),
        run=RunEvidence(settings={"data.source": f"{folder}/photos/", "data.test": f"{folder}/other/test.csv"}),
    )
    stored = to_json(told)
    assert b"private" not in stored and "private" not in report(told)
    assert from_json(stored) == told
    assert told.data.source == told.run.settings["data.source"] == "photos"
    assert [one.where for one in told.data.set_aside] == ["photos/cats/1.png", "test.csv", "the table"]
    assert DataEvidence(source="C:\\Users\\ann\\irises.csv").source == "irises.csv"
