import numpy as np
import polars as pl
import pytest
import torch

from fathom.artifact import Artifact, load, outputs
from fathom.core.errors import ConfigError, DataError
from fathom.core.types import DataSpec, Field, Stats
from fathom.data._store import TensorStore

from .conftest import SPEC, Scaling, objective, write

PRICE = Field(name="price", kind="number", source="price", stats=Stats(mean=(4000.0,), std=(900.0,)))


def live(spec: DataSpec = SPEC) -> Artifact:
    module = objective(spec, width=8, members=2)[2]
    return Artifact(module, spec, Scaling(spec), {}, {})


def test_a_loaded_model_predicts_what_the_live_one_did(folder, frame):
    before, after = live().predict(frame), load(folder).predict(frame)
    assert after["prediction"].to_list() == before["prediction"].to_list()
    for name in before.columns[1:]:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 36, 37, 1000])
def test_the_batch_size_changes_nothing(folder, frame, size):
    found = load(folder)
    whole, parts = found.predict(frame), found.predict(frame, batch_size=size)
    for name in whole.columns[1:]:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("step", [1, 7, 37])
def test_taking_the_table_in_pieces_changes_nothing(folder, frame, step, monkeypatch):
    frame = frame.with_columns(pl.when(pl.int_range(pl.len()) % 5 == 0).then(None).otherwise(pl.col("a")).alias("a"))
    whole = load(folder).predict(frame)
    monkeypatch.setattr("fathom.artifact.predict.rows_at_once", lambda spec: step)
    parts = load(folder).predict(frame)
    assert parts["problem"].to_list() == whole["problem"].to_list()
    assert parts["prediction"].to_list() == whole["prediction"].to_list()


def test_rows_keep_their_order(folder, frame):
    found = load(folder)
    once, again = found.predict(frame), found.predict(frame.reverse())
    np.testing.assert_allclose(again["probability"].reverse(), once["probability"], atol=1e-6)


def test_the_columns_of_one_category(folder, frame):
    found = load(folder).predict(frame)
    classes = SPEC.targets[0].classes
    assert found.columns == ["prediction", "probability", *(f"probability.{c}" for c in classes)]
    each = found.select(pl.col(f"probability.{c}") for c in classes).to_numpy()
    np.testing.assert_allclose(each.sum(1), 1, atol=1e-6)
    assert found["prediction"].to_list() == [classes[i] for i in each.argmax(1)]
    np.testing.assert_array_equal(found["probability"], each.max(1))


def test_the_column_of_one_number(tmp_path, frame):
    spec = DataSpec(inputs=SPEC.inputs, targets=(PRICE,), rows=24)
    found = load(write(tmp_path / "m", spec=spec)).predict(frame)
    assert found.columns == ["prediction"]
    assert found["prediction"].dtype == pl.Float32
    assert found["prediction"].is_between(0, 9000).all()


def test_the_columns_of_several_targets(tmp_path, frame):
    spec = DataSpec(inputs=SPEC.inputs, targets=(PRICE, *SPEC.targets), rows=24)
    found = load(write(tmp_path / "m", spec=spec)).predict(frame)
    assert found.columns == ["prediction.price", "prediction.kind", "probability.kind"]


def test_a_row_that_cannot_be_read_keeps_its_place(folder):
    frame = pl.DataFrame({"a": [0.5, None, 0.5], "b": [1.0, 1.0, 1.0]})
    found = load(folder).predict(frame)
    assert found["problem"].to_list() == [None, "a number is missing", None]
    assert found["prediction"].is_null().to_list() == [False, True, False]
    assert found["probability.yes"].is_null().to_list() == [False, True, False]
    assert found["probability"][0] == found["probability"][2]


@pytest.mark.parametrize("height", [0, 2])
def test_a_table_without_a_readable_row_has_the_same_columns(folder, height):
    frame = pl.DataFrame({"a": [None] * height, "b": [None] * height}, schema={"a": pl.Float64, "b": pl.Float64})
    found = load(folder).predict(frame)
    assert found.height == height
    assert found.columns[:2] == ["prediction", "probability"]
    assert found["prediction"].is_null().all()


def test_rows_as_dicts_are_a_table_too(folder, frame):
    found = load(folder)
    assert found.predict(frame.to_dicts()).equals(found.predict(frame))
    with pytest.raises(DataError, match="list of rows"):
        found.predict("new.csv")


def test_predicting_leaves_no_trace(frame):
    found = live()
    found.module.train()
    found.module.heads.eval()
    modes = [module.training for module in found.module.modules()]
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in found.module.state_dict().items()}
    threads = torch.get_num_threads()
    first, second = found.predict(frame, threads=1), found.predict(frame)
    assert first.equals(second)  # dropout was off
    assert modes == [module.training for module in found.module.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in found.module.state_dict().items())
    assert torch.get_num_threads() == threads
    assert not any(p.grad is not None for p in found.module.parameters())


def test_modes_are_restored_after_an_error():
    found = live()
    found.module.train()
    with pytest.raises(KeyError):
        found.outputs([{"letters": torch.zeros(1)}])
    assert all(module.training for module in found.module.modules())


def test_a_model_that_draws_at_prediction_leaves_the_random_state(frame):
    found = live()
    found.module.register_forward_pre_hook(lambda *_: None)
    predict = found.module.predict

    def noisy(batch):
        torch.rand(3)
        return predict(batch)

    found.module.predict = noisy
    state = torch.get_rng_state()
    found.predict(frame)
    assert torch.equal(state, torch.get_rng_state())


def test_outputs_of_batches_and_of_a_store_agree(frame):
    found = live()
    store = TensorStore({"number": torch.tensor(frame.to_numpy(), dtype=torch.float32)})
    batches = (store.gather(torch.arange(i, min(i + 10, 37))) for i in range(0, 37, 10))
    by_store, by_batches = found.outputs(store), outputs(found.module, batches)
    assert by_store["kind"].shape == (37, 3)
    np.testing.assert_allclose(by_batches["kind"], by_store["kind"], atol=1e-6)
    empty = found.outputs(TensorStore({"number": torch.zeros(0, 2)}))
    assert empty["kind"].shape == (0, 3)


@pytest.mark.parametrize("name", ["batch_size", "threads"])
def test_a_size_below_one_is_refused(folder, frame, name):
    with pytest.raises(ConfigError, match=f"{name} was given 0"):
        load(folder).predict(frame, **{name: 0})
