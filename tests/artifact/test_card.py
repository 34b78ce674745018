import json

import pytest

from fathom.artifact import card, load
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats

from .conftest import FILES, METRICS, SPEC, write

hub = pytest.importorskip("huggingface_hub")

PICTURE = Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats())
TEXT = Field(name="text", kind="text", shape=(64,), vocabulary=100)
NUMBER = SPEC.inputs[0]
COLOUR = Field(name="colour", kind="category", classes=(UNKNOWN, "red"))
CLASS, PRICE = SPEC.targets[0], Field(name="price", kind="number", stats=Stats())
CONFIG = {"fathom": "0.1.0", "model": {"name": "mlp"}, "about": {}}


def read(spec: DataSpec = SPEC, metrics=METRICS, **about):
    text = card.render({**CONFIG, "about": about}, spec, metrics, FILES)
    return hub.ModelCard(text), text


def test_the_hub_reads_the_card_in_a_saved_folder(folder):
    found = hub.ModelCard.load(folder / "README.md")
    assert found.data.library_name == "fathom"
    assert found.data.pipeline_tag == "tabular-classification"
    assert found.data.model_name == "kind, by mlp"
    (result,) = found.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.75, "test")
    index = found.data.to_dict()["model-index"]
    assert hub.repocard_data.model_index_to_eval_results(index)[0] == found.data.model_name
    assert found.data.license is None  # the user's to give


def test_facts_that_were_given_are_there():
    found, text = read(
        name="My model", license="apache-2.0", source="/home/me/wine.csv", notes=["Only European wines."]
    )
    assert found.data.license == "apache-2.0"
    assert found.data.eval_results[0].dataset_name == "wine.csv"
    assert text.count("# My model") == 1
    assert "Trained on wine.csv. 24 rows were learned from." in text
    assert "- Only European wines." in text


@pytest.mark.parametrize(
    ("inputs", "target", "task"),
    [
        ((PICTURE,), CLASS, "image-classification"),
        ((TEXT,), CLASS, "text-classification"),
        ((NUMBER, COLOUR), CLASS, "tabular-classification"),
        ((NUMBER, TEXT, PICTURE), CLASS, "tabular-classification"),
        ((NUMBER,), PRICE, "tabular-regression"),
        ((PICTURE,), PRICE, None),
    ],
)
def test_the_task_is_the_hubs_name_for_it(inputs, target, task):
    found, text = read(DataSpec(inputs=inputs, targets=(target,)), {"test": {target.name: METRICS["test"]["kind"]}})
    assert found.data.pipeline_tag == task
    assert found.data.eval_results
    assert "{" not in text.split("---", 2)[2]


def test_the_numbers_are_the_measured_ones():
    text = read()[1]
    assert "| **this model** | 0.75 [0.5, 0.9] |" in text
    assert "| majority | 0.375 |" in text
    assert "auroc" not in text.lower()  # it had no value


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"test": None},
        {"test": {}},
        {"test": {"kind": {}}},
        {"test": {"kind": {"metrics": []}}},
        {"test": {"kind": {"metrics": {"accuracy": {"value": None}}}}},
        {"test": {"kind": {"metrics": {"accuracy": "high"}}}},
        {"baselines": 3, "verdict": [], "test": 5},
    ],
    ids=range(8),
)
def test_what_was_not_measured_is_not_claimed(metrics):
    found, text = read(metrics=metrics)
    assert "This model has not been measured." in text
    assert not found.data.eval_results
    assert "model-index" not in text


def test_numbers_alone_and_other_splits_are_understood():
    found, text = read(metrics={"validation": {"kind": {"metrics": {"accuracy": 0.5}}}, "baselines": [3, {"x": 1}]})
    assert found.data.eval_results[0].metric_value == 0.5
    assert "by which it was also chosen" in text


def test_scores_on_training_rows_are_called_that():
    text = read(metrics={**METRICS, "judged_on": "training"})[1]
    assert "12 training rows" in text and "on new rows it will do worse" in text


def test_a_verdict_is_repeated():
    metrics = {**METRICS, "verdict": {"kind": {"sentence": "Deep learning is not worth it here: use trees."}}}
    assert "Deep learning is not worth it here: use trees." in read(metrics=metrics)[1]


NASTY = "a|b`c*\n---\n# d <script>x</script>\u2028\x85\x00\x7f: {e} [f](g) 'h' \"i\" ünï"


def test_names_of_the_users_cannot_break_the_card():
    spec = DataSpec(
        inputs=(Field(name=NASTY, kind="number"),),
        targets=(Field(name=NASTY + "t", kind="category", classes=("x" + NASTY, "y"), counts=(1, 2)),),
        rows=3,
    )
    metrics = {"test": {NASTY + "t": {"n": 3, "metrics": {"accuracy": 0.5, NASTY: 1.0}}}}
    metrics["baselines"] = [{"name": NASTY, "metrics": {"accuracy": 0.1}}]
    found, text = read(spec, metrics, name=NASTY, source=NASTY, license="mit", notes=[NASTY])
    assert found.data.license == "mit"
    assert len(found.data.eval_results) == 2
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "\n---\n" not in body and "\x00" not in text
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} <= {4}


def test_very_many_columns_are_counted_not_listed():
    inputs = tuple(Field(name=f"x{i}", kind="number") for i in range(500))
    text = read(DataSpec(inputs=inputs, targets=(CLASS,)))[1]
    assert "470 more columns" in text and len(text.splitlines()) < 120


def test_a_card_of_the_users_own_is_kept(tmp_path):
    folder = write(tmp_path / "m", files={"README.md": "# mine\n"})
    assert (folder / "README.md").read_text() == "# mine\n"
    assert load(folder)


def test_front_matter_is_one_line_of_json_each():
    front = read()[1].split("---")[1].strip().splitlines()
    assert all(json.loads(line.partition(": ")[2]) for line in front)
