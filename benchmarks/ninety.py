"""How soon are nine of ten test images right? `python benchmarks/ninety.py [--peer-python PATH] [--repeats N]`.

The bundled sample of Fashion-MNIST, 10,000 images to learn from and 2,000 to test on. Fathom runs `fit` with its
defaults in at most --minutes; each given length is a whole run with an end of its own, and its time is that of the
process: imports, reading, measuring, training, testing, the report's evidence. The peers have no network to offer, so
they get the one that Fathom chooses (Keras the same in its own layers), AdamW at 0.001 and batches of 128, and go on
until an epoch ends with nine of ten test images right, or --patience minutes are over; what their testing takes is
not counted. Figures go to results/ninety.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "train"))

from clock import BEGAN

RESULTS = Path(__file__).parent / "results" / "ninety.json"
GOAL, BATCH, RATE, WIDTHS = 0.90, 128, 1e-3, (32, 64, 128)
PEERS = ("plain", "lightning", "hf", "skorch", "keras_torch", "keras_jax")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    options.add_argument("--minutes", nargs="*", type=float, default=[0.5, 0.75, 1.0], help="lengths of Fathom's runs")
    options.add_argument("--repeats", type=int, default=1, help="runs of each, with seeds 0, 1, …")
    options.add_argument("--patience", type=float, default=5.0, help="minutes after which a peer is stopped")
    options.add_argument("--peer-python", default=sys.executable, help="the Python that has the peers installed")
    options.add_argument("--one", nargs=3, metavar=("WHO", "MINUTES", "SEED"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        who, minutes, seed = given.one
        print(json.dumps(_fathom(float(minutes), int(seed)) if who == "fathom" else _peer(who, minutes, int(seed))))
        return
    runs = []
    for seed in range(given.repeats):
        turns = [("fathom", minutes) for minutes in given.minutes] + [(peer, given.patience) for peer in given.peers]
        for who, minutes in turns:
            found = _process(given.peer_python, who, minutes, seed)
            if found:
                runs.append({"who": who, "minutes": minutes, "seed": seed, **found})
                print(json.dumps(runs[-1]), flush=True)
    _told(runs)


def _told(runs: list[dict[str, Any]]) -> None:
    """Keep the runs and the ratio of the fastest peer's time to Fathom's; a peer that was stopped counts till then."""
    everyone, seeds = dict.fromkeys(run["who"] for run in runs), dict.fromkeys(run["seed"] for run in runs)
    reached = {who: [sooner(runs, who, seed) for seed in seeds] for who in everyone}
    ours = [seconds for seconds in reached.get("fathom", []) if seconds]
    ended = [statistics.median(r["seconds"] for r in runs if r["who"] == who) for who in everyone if who != "fathom"]
    ratio = min(ended) / statistics.median(ours) if ended and ours else None
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    record = {"bar": 2.0, "reached_seconds": reached, "ratio_at_least": ratio, "machine": machine, "runs": runs}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "runs"}, indent=2))


def sooner(runs: list[dict[str, Any]], who: str, seed: int) -> float | None:
    """Return the seconds of the shortest run that reached the goal, where one did."""
    mine = [run for run in runs if run["who"] == who and run["seed"] == seed]
    return min((run["seconds"] for run in mine if run["accuracy"] >= GOAL), default=None)


def _process(python: str, who: str, minutes: float, seed: int) -> dict[str, Any]:
    """Return what a process of its own printed last; nothing where it failed."""
    command = [python, __file__, "--one", who, str(minutes), str(seed)]
    environment = os.environ | {BEGAN: str(time.time()), "KERAS_BACKEND": who.removeprefix("keras_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{who}: {(done.stderr.strip() or 'failed').splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _fathom(minutes: float, seed: int) -> dict[str, Any]:
    """One command, as a user gives it."""
    import fathom

    model = fathom.fit("fashion", target="label", minutes=minutes, seed=seed, sets=["evaluate.baselines=false"])
    seconds = time.time() - float(os.environ[BEGAN])
    run = json.loads(model.files["evidence.json"])["run"]
    accuracy = model.metrics["test"]["label"]["metrics"]["accuracy"]["value"]
    trained = {"trained": run["seconds"], "epochs": len(run["epochs"]), "parameters": run["parameters"]}
    return {"accuracy": accuracy, "seconds": seconds} | trained


class Test:
    """Judges after each epoch, off the clock, and says when it is over."""

    def __init__(self, judge: Callable[[], float], minutes: str) -> None:
        self.judge, self.patience = judge, 60 * float(minutes)
        self.off, self.accuracy, self.epochs = float(os.environ[BEGAN]), 0.0, 0

    def over(self) -> bool:
        stopped = time.time()
        self.accuracy, self.epochs, self.seconds = self.judge(), self.epochs + 1, stopped - self.off
        self.off += time.time() - stopped
        return self.accuracy >= GOAL or self.seconds > self.patience

    def result(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "seconds": self.seconds, "epochs": self.epochs}


def _peer(who: str, minutes: str, seed: int) -> dict[str, Any]:
    """Run a library until its epoch ends well."""
    import numpy as np
    import polars as pl
    import torch
    from workloads import SAMPLE, fashion

    frame = pl.read_parquet(SAMPLE)
    x, y = fashion(frame)
    first, last = (np.flatnonzero(frame["split"].to_numpy() == part) for part in ("train", "test"))
    torch.manual_seed(seed)
    if who.startswith("keras"):
        return _keras((x[first], y[first]), (x[last], y[last]), minutes, seed)
    network = _network()
    data = torch.from_numpy(x[first]), torch.from_numpy(y[first])
    unseen, truth = torch.from_numpy(x[last]), torch.from_numpy(y[last])

    def judge() -> float:
        network.eval()
        with torch.inference_mode():
            found = torch.cat([network(part).argmax(1) for part in unseen.split(500)])
        network.train()
        return float((found == truth).float().mean())

    test = Test(judge, minutes)
    {"plain": _plain, "lightning": _lightning, "hf": _hf, "skorch": _skorch}[who](network, data, test)
    return test.result()


def _network() -> Any:
    """Fathom's network for these images, as a plain module from scaled pixels to scores."""
    from torch import nn

    from fathom.core.types import DataSpec, Field, Stats
    from fathom.models import resnet

    image = Field(name="image", kind="image", shape=(1, 28, 28), stats=Stats(mean=(0.0,), std=(1.0,)))
    inner = resnet.build(resnet.Config(widths=WIDTHS), DataSpec(inputs=(image,), rows=9_000))

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(inner.width, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.inner({image.key: x}).pooled)

    return Scored()


def _plain(network: Any, data: Any, test: Test) -> None:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(*data), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        if test.over():
            return


def _lightning(network: Any, data: Any, test: Test) -> None:
    import tempfile

    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, index: int) -> Any:
            loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), RATE)

        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = test.over()

    with tempfile.TemporaryDirectory() as folder:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(max_epochs=-1, accelerator="cpu", default_root_dir=folder, **quiet)
        trainer.fit(Module(), DataLoader(TensorDataset(*data), BATCH, shuffle=True))


def _hf(network: Any, data: Any, test: Test) -> None:
    import tempfile

    import torch
    from peer_hf import Rows
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Priced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": torch.nn.functional.cross_entropy(self.network(x), labels)}

    class Ends(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = test.over()
            return control

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1_000,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(Priced(), settings, train_dataset=Rows(*data), callbacks=[Ends()]).train()


def _skorch(network: Any, data: Any, test: Test) -> None:
    from contextlib import suppress

    import torch
    from clock import TimeIsUpError
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback

    class Ends(Callback):
        def on_epoch_end(self, net: Any, **_: Any) -> None:
            if test.over():
                raise TimeIsUpError

    settings = {"criterion": torch.nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW, "lr": RATE, "verbose": 0}
    shuffled = {"train_split": None, "iterator_train__shuffle": True, "batch_size": BATCH, "max_epochs": 1_000}
    with suppress(TimeIsUpError):
        NeuralNetClassifier(network, callbacks=[Ends()], **settings, **shuffled).fit(*(part.numpy() for part in data))


def _keras(train: Any, unseen: Any, minutes: str, seed: int) -> dict[str, Any]:
    import keras
    import numpy as np
    from keras import layers, ops

    keras.utils.set_random_seed(seed)

    def convolved(h: Any, width: int, kernel: int = 3, stride: int = 1) -> Any:
        return layers.BatchNormalization()(layers.Conv2D(width, kernel, stride, "same", use_bias=False)(h))

    first = keras.Input((28, 28, 1))
    h = ops.relu(convolved(first, WIDTHS[0] // 2))
    for width in WIDTHS:
        out = convolved(ops.relu(convolved(h, width, 3, 2)), width)
        h = ops.relu(out + convolved(layers.AveragePooling2D(2, padding="same")(h), width, 1))
    model = keras.Model(first, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))
    model.compile(keras.optimizers.AdamW(RATE), keras.losses.SparseCategoricalCrossentropy(True))
    x, truth = np.moveaxis(unseen[0], 1, -1), unseen[1]
    test = Test(lambda: float((model.predict(x, 500, verbose=0).argmax(1) == truth).mean()), minutes)

    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = test.over()

    model.fit(np.moveaxis(train[0], 1, -1), train[1], BATCH, epochs=1_000, verbose=0, callbacks=[Ends()])
    return test.result() | {"parameters": model.count_params()}


if __name__ == "__main__":
    main()
