"""The eight workloads: data, network and loss, in plain PyTorch, the same for every library that trains PyTorch.

Data are small enough to lie in memory and can be learned, so that the time to a fixed loss means something.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE = Path(__file__).parents[2] / "src" / "fathom" / "samples" / "fashion.parquet"
Arrays = dict[str, np.ndarray]
NODES, EDGES, WIDTH, CLASSES = 10_000, 100_000, 64, 8


@dataclass(frozen=True)
class Workload:
    """One thing to train.

    Attributes:
        arrays: makes the columns of the data, `x` and `y`, of so many rows.
        network: makes the network; the same weights every time.
        units: outputs that are scored, a row: of a text one for each token.
        goal: a training loss that is low enough to speak of having learned.
    """

    name: str
    about: str
    batch: int
    rows: int
    arrays: Callable[[int], Arrays]
    network: Callable[[], nn.Module]
    goal: float
    images: bool = False
    without: tuple[str, ...] = field(default=())


def loss_of(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy over all that is scored."""
    return F.cross_entropy(network(x).flatten(0, -2), y.flatten())


def tensors(work: Workload) -> tuple[Tensor, Tensor]:
    arrays = work.arrays(work.rows)
    return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def made(work: Workload) -> nn.Module:
    torch.manual_seed(0)
    return work.network()


def _table(rows: int) -> Arrays:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((rows, 32), dtype=np.float32)
    scores = np.tanh(x @ draw.standard_normal((32, 24)) / 4) @ draw.standard_normal((24, 10))
    return {"x": x, "y": scores.argmax(1).astype(np.int64)}


def _fashion(rows: int) -> Arrays:
    import polars as pl

    x, y = fashion(pl.read_parquet(SAMPLE).head(rows))
    return {"x": x, "y": y}


def fashion(frame: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scaled pixels [N, 1, 28, 28] and numbers of classes [N] of rows of the bundled sample."""
    from PIL import Image

    pictures = [np.asarray(Image.open(io.BytesIO(each["bytes"]))) for each in frame["image"]]
    names = sorted(set(frame["label"]))
    x = (np.stack(pictures).astype(np.float32) / 255 - 0.286) / 0.353
    return x[:, None], np.array([names.index(label) for label in frame["label"]])


def _markov(rows: int, length: int, vocabulary: int, seed: int) -> np.ndarray:
    """Texts in which each token has four likely followers."""
    draw = np.random.default_rng(seed)
    follows = draw.integers(0, vocabulary, (vocabulary, 4))
    texts = np.empty((rows, length), np.int64)
    texts[:, 0] = draw.integers(0, vocabulary, rows)
    for t in range(1, length):
        texts[:, t] = follows[texts[:, t - 1], draw.integers(0, 4, rows)]
    return texts


def _texts(rows: int) -> Arrays:
    texts = _markov(rows, 257, 4096, 0)
    return {"x": texts[:, :-1].copy(), "y": texts[:, 1:].copy()}


def _sentences(rows: int) -> Arrays:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 4, rows)
    x = draw.integers(4, 8192, (rows, 128))
    x[np.arange(rows)[:, None], draw.integers(0, 128, (rows, 6))] = y[:, None]  # some tokens tell the class
    return {"x": x, "y": y}


def _series(rows: int) -> Arrays:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 6, rows)
    t = np.arange(100)[None, :, None] / 100
    phase = draw.uniform(0, 6.3, (rows, 1, 8))
    x = np.sin(6.3 * (2 + y[:, None, None]) * t + phase) + 0.5 * draw.standard_normal((rows, 100, 8))
    return {"x": x.astype(np.float32), "y": y}


def graph() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One graph: nodes [N, F], edges [M, 2], classes [N]; two neighbours in three are of a node's own class."""
    draw = np.random.default_rng(0)
    classes = draw.integers(0, CLASSES, NODES)
    members = [np.flatnonzero(classes == c) for c in range(CLASSES)]
    source = draw.integers(0, NODES, EDGES)
    near = np.array([draw.choice(members[classes[node]]) for node in source])
    target = np.where(draw.random(EDGES) < 2 / 3, near, draw.integers(0, NODES, EDGES))
    nodes = (np.eye(CLASSES, WIDTH)[classes] + draw.standard_normal((NODES, WIDTH))).astype(np.float32)
    return nodes, np.stack([source, target], 1), classes


def _graphs(rows: int) -> Arrays:
    nodes, _, classes = graph()
    return {"x": nodes[None].repeat(rows, 0), "y": classes[None].repeat(rows, 0)}


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def _lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.short = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(out)) + self.short(x))


def _resnet() -> nn.Module:
    widths, layers = (64, 64, 128, 256, 512), []
    for index in range(4):
        layers.append(_Residual(widths[index], widths[index + 1], 1 if index == 0 else 2))
        layers.append(_Residual(widths[index + 1], widths[index + 1], 1))
    stem = (nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project_in(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.project_out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class _ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 192, 4, 4)
        self.first = nn.Parameter(torch.zeros(1, 1, 192))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 50, 192))
        self.blocks = nn.Sequential(*(_Block(192, 3, False) for _ in range(6)), nn.LayerNorm(192))
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.blocks(tokens)[:, 0])


class _Text(nn.Module):
    def __init__(self, vocabulary: int, length: int, causal: bool, outputs: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, 256), nn.Embedding(length, 256)
        self.blocks = nn.Sequential(*(_Block(256, 4, causal) for _ in range(4)), nn.LayerNorm(256))
        self.head, self.causal = nn.Linear(256, outputs), causal
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(self.tokens(x) + self.positions.weight[: x.shape[1]])
        return self.head(hidden if self.causal else hidden.mean(1))


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 128, 2, batch_first=True), nn.Linear(128, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class _GCN(nn.Module):
    """Two layers that sum over neighbours by an edge list, as most examples write them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.biases = nn.ParameterList(torch.zeros(WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)
        loops = torch.arange(NODES)[:, None].expand(-1, 2)
        source, target = torch.cat([torch.from_numpy(graph()[1]), loops]).T
        degree = torch.bincount(target, minlength=NODES).float()
        self.register_buffer("source", source.contiguous())
        self.register_buffer("target", target.contiguous())
        self.register_buffer("weight", (degree[source] * degree[target]).rsqrt()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x[0]  # one graph
        for index, layer in enumerate(self.layers):
            messages = layer(x)[self.source] * self.weight
            x = torch.zeros_like(x).index_add(0, self.target, messages) + self.biases[index]
            x = F.relu(x) if index == 0 else x
        return self.head(x)[None]


WORKLOADS = {
    work.name: work
    for work in (
        Workload("mlp", "32-128-128-10 on 50,000 rows", 256, 50_000, _table, _mlp, 0.5),
        Workload("lenet", "LeNet-5 on Fashion-MNIST", 128, 10_000, _fashion, _lenet, 0.5, images=True),
        Workload("resnet18", "ResNet-18 for small images on Fashion-MNIST", 128, 10_000, _fashion, _resnet, 0.8, True),
        Workload("vit", "patch 4, width 192, depth 6 on Fashion-MNIST", 128, 10_000, _fashion, _ViT, 1.0, images=True),
        Workload(
            "gpt",
            "width 256, depth 4, context 256, vocabulary 4,096",
            8,
            2_000,
            _texts,
            lambda: _Text(4096, 256, True, 4096),
            7.0,
            without=("skorch",),
        ),
        Workload("lstm", "two layers of width 128 on series of 100×8", 64, 10_000, _series, _LSTM, 1.5),
        Workload(
            "bert",
            "encoder of width 256, depth 4, length 128, vocabulary 8,192",
            16,
            4_000,
            _sentences,
            lambda: _Text(8192, 128, False, 4),
            1.3,
        ),
        Workload(
            "gcn",
            "two layers of width 64, 10,000 nodes, 100,000 edges, all at once",
            1,
            64,
            _graphs,
            _GCN,
            1.0,
            without=("skorch", "hf", "lightning", "keras_torch", "keras_jax"),
        ),
    )
}
