"""Keras 3's `fit` as it comes, on torch or on jax; the networks are written once more in its layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from clock import Clock
from keras import layers, ops
from workloads import Workload

QUICK = ("mlp", "lenet")  # here the clock ticks once an epoch: a callback at each step would make Keras wait for it


class Ticks(keras.callbacks.Callback):
    """Tells the clock of each step, or of each epoch."""

    def __init__(self, clock: Clock, samples: int) -> None:
        super().__init__()
        self.clock, self.samples = clock, samples

    def take(self, logs: Any) -> None:
        self.clock.learned(float(logs["loss"]))
        self.model.stop_training = self.clock.tick(self.samples)


class OfSteps(Ticks):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.take(logs)


class OfEpochs(Ticks):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.take(logs)


def run(work: Workload, clock: Clock) -> None:
    arrays = work.arrays(work.rows)
    x = np.moveaxis(arrays["x"], 1, -1) if work.images else arrays["x"]
    keras.utils.set_random_seed(0)
    model = NETWORKS[work.name](x)
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=0.01), keras.losses.SparseCategoricalCrossentropy(True))
    ticks = OfEpochs(clock, work.rows) if work.name in QUICK else OfSteps(clock, work.batch)
    model.fit(x, arrays["y"], work.batch, epochs=100_000, verbose=0, callbacks=[ticks])


def _mlp(x: np.ndarray) -> keras.Model:
    return keras.Sequential(
        [keras.Input((32,)), layers.Dense(128, "relu"), layers.Dense(128, "relu"), layers.Dense(10)]
    )


def _lenet(x: np.ndarray) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            *(layers.Conv2D(6, 5, padding="same", activation="relu"), layers.MaxPool2D()),
            *(layers.Conv2D(16, 5, activation="relu"), layers.MaxPool2D(), layers.Flatten()),
            *(layers.Dense(120, "relu"), layers.Dense(84, "relu"), layers.Dense(10)),
        ]
    )


def _resnet(x: np.ndarray) -> keras.Model:
    def convolved(h: Any, width: int, kernel: int, stride: int) -> Any:
        return layers.BatchNormalization()(layers.Conv2D(width, kernel, stride, "same", use_bias=False)(h))

    first = keras.Input(x.shape[1:])
    h = ops.relu(convolved(first, 64, 3, 1))
    for index, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if index and not block else 1
            out = convolved(ops.relu(convolved(h, width, 3, stride)), width, 3, 1)
            h = ops.relu(out + (convolved(h, width, 1, stride) if h.shape[-1] != width else h))
    return keras.Model(first, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))


class _Add(layers.Layer):
    """Positions, and for images a first token."""

    def __init__(self, length: int, width: int, first: bool) -> None:
        super().__init__()
        self.first = self.add_weight(shape=(1, 1, width), initializer="zeros") if first else None
        self.positions = self.add_weight(shape=(1, length, width), initializer=keras.initializers.RandomNormal(0, 0.02))

    def call(self, tokens: Any) -> Any:
        if self.first is not None:
            leading = ops.broadcast_to(self.first, (ops.shape(tokens)[0], 1, self.first.shape[-1]))
            tokens = ops.concatenate([leading, tokens], 1)
        return tokens + self.positions


def _blocks(h: Any, depth: int, width: int, heads: int, causal: bool) -> Any:
    for _ in range(depth):
        normed = layers.LayerNormalization(epsilon=1e-5)(h)
        h = h + layers.MultiHeadAttention(heads, width // heads)(normed, normed, use_causal_mask=causal)
        hidden = layers.Dense(4 * width, "gelu")(layers.LayerNormalization(epsilon=1e-5)(h))
        h = h + layers.Dense(width)(hidden)
    return layers.LayerNormalization(epsilon=1e-5)(h)


def _vit(x: np.ndarray) -> keras.Model:
    first = keras.Input(x.shape[1:])
    tokens = layers.Reshape((49, 192))(layers.Conv2D(192, 4, 4)(first))
    h = _blocks(_Add(50, 192, True)(tokens), 6, 192, 3, False)
    return keras.Model(first, layers.Dense(10)(h[:, 0]))


def _text(vocabulary: int, outputs: int, causal: bool) -> Any:
    def build(x: np.ndarray) -> keras.Model:
        first = keras.Input(x.shape[1:], dtype="int64")
        h = _Add(x.shape[1], 256, False)(layers.Embedding(vocabulary, 256)(first))
        h = _blocks(h, 4, 256, 4, causal)
        return keras.Model(first, layers.Dense(outputs)(h if causal else layers.GlobalAveragePooling1D()(h)))

    return build


def _lstm(x: np.ndarray) -> keras.Model:
    return keras.Sequential(
        [keras.Input(x.shape[1:]), layers.LSTM(128, return_sequences=True), layers.LSTM(128), layers.Dense(6)]
    )


NETWORKS = {
    "mlp": _mlp,
    "lenet": _lenet,
    "resnet18": _resnet,
    "vit": _vit,
    "gpt": _text(4096, 4096, True),
    "lstm": _lstm,
    "bert": _text(8192, 4, False),
}
