"""A neural network with nothing but numpy: `python examples/from_scratch.py`.

A perceptron of two layers learns to read handwritten digits (scikit-learn's, 8×8 pixels):

    x [B, 64]  ─ W₁, b₁ ─>  a [B, H]  ─ ReLU ─>  h [B, H]  ─ W₂, b₂ ─>  z [B, 10]  ─ softmax ─>  p [B, 10]

Read it from the top. `forward` computes what the network answers, `cross_entropy` how wrong that is, `backward` how the
error changes with every weight (backpropagation: the chain rule, applied from the last layer to the first), and `train`
moves each weight a small step against its gradient, batch by batch (stochastic gradient descent).

At the end the same network is trained by PyTorch, which finds the gradients by itself: from the same first weights and
with the same batches, every weight comes out the same. Nothing in a deep learning framework is magic.

Rumelhart, Hinton, Williams, Learning Representations by Back-Propagating Errors, 1986.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Weights = dict[str, np.ndarray]

HIDDEN, EPOCHS, BATCH, RATE, SEED = 64, 60, 32, 0.1, 0


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images [N, 64] and labels [N], then those to test on: a fifth that is never learned from."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images / 16 - 0.5  # grey levels from 0 to 16 become −0.5 to 0.5
    order = np.random.default_rng(SEED).permutation(len(images))
    test, train = np.split(order, [len(order) // 5])
    return images[train], labels[train], images[test], labels[test]


def first_weights(inputs: int, hidden: int, classes: int) -> Weights:
    """Return random first weights.

    They differ, or all units of a layer would learn the same; and they are so small that what a layer gives out is
    about as large as what it takes in: variance 2 / inputs before a ReLU, which silences half (He et al., 2015).
    """
    draw = np.random.default_rng(SEED)
    return {
        "W1": draw.normal(0, np.sqrt(2 / inputs), (inputs, hidden)),
        "b1": np.zeros(hidden),
        "W2": draw.normal(0, np.sqrt(1 / hidden), (hidden, classes)),
        "b2": np.zeros(classes),
    }


def forward(w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a [B, H], h [B, H] and the logits z [B, C] of inputs x [B, I]."""
    a = x @ w["W1"] + w["b1"]
    h = np.maximum(a, 0)  # ReLU
    z = h @ w["W2"] + w["b2"]
    return a, h, z


def softmax(z: np.ndarray) -> np.ndarray:
    """Return probabilities p [B, C] of logits: positive, and each row sums to one."""
    e = np.exp(z - z.max(axis=1, keepdims=True))  # the largest is taken off first, so that nothing overflows
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z: np.ndarray, y: np.ndarray) -> float:
    """Return the mean of −log p of the right classes y [B]: 0 if they are certain, log 10 ≈ 2.3 for a blind guess."""
    return float(-np.log(softmax(z)[np.arange(len(y)), y]).mean())


def backward(w: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the gradient of the cross-entropy with respect to every weight, in the weights' shapes.

    Each line goes one step back through `forward`; d_v is the derivative of the loss with respect to v.
    """
    a, h, z = forward(w, x)
    d_z = softmax(z)  # of cross-entropy behind softmax, the derivative is p − (1 at the right class, else 0)
    d_z[np.arange(len(y)), y] -= 1
    d_z /= len(y)  # the loss is a mean over the batch
    d_h = d_z @ w["W2"].T  # z = h W₂ + b₂: each h reaches the loss through every z
    d_a = d_h * (a > 0)  # ReLU lets the gradient pass where it let the signal pass
    return {
        "W1": x.T @ d_a,  # a = x W₁ + b₁, summed over the batch
        "b1": d_a.sum(axis=0),
        "W2": h.T @ d_z,
        "b2": d_z.sum(axis=0),
    }


def batches(rows: int) -> Iterator[np.ndarray]:
    """Give the positions of each batch; every epoch goes through all rows once, in a new order."""
    draw = np.random.default_rng(SEED)
    for _ in range(EPOCHS):
        order = draw.permutation(rows)
        yield from (order[start : start + BATCH] for start in range(0, rows, BATCH))


def train(w: Weights, images: np.ndarray, labels: np.ndarray) -> Weights:
    """Return the weights after stochastic gradient descent: w ← w − rate · gradient, once for each batch."""
    w = {name: value.copy() for name, value in w.items()}
    for batch in batches(len(images)):
        gradient = backward(w, images[batch], labels[batch])
        for name in w:
            w[name] -= RATE * gradient[name]
    return w


def train_with_torch(w: Weights, images: np.ndarray, labels: np.ndarray) -> Weights:
    """Return what PyTorch makes of the same first weights and the same batches."""
    import torch
    from torch.nn import functional as F

    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    t = {name: torch.tensor(value, requires_grad=True) for name, value in w.items()}  # float64, like numpy's
    optimizer = torch.optim.SGD(t.values(), lr=RATE)
    for batch in map(torch.from_numpy, batches(len(images))):
        h = torch.relu(x[batch] @ t["W1"] + t["b1"])
        loss = F.cross_entropy(h @ t["W2"] + t["b2"], y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().numpy() for name, value in t.items()}


def accuracy(w: Weights, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose likeliest class is the right one."""
    return float((forward(w, images)[2].argmax(axis=1) == labels).mean())


def main() -> dict[str, float]:
    """Train both ways, print how they compare, and return the figures."""
    images, labels, test_images, test_labels = load()
    start = first_weights(images.shape[1], HIDDEN, 10)
    ours = train(start, images, labels)
    theirs = train_with_torch(start, images, labels)
    found = {
        "loss before": cross_entropy(forward(start, images)[2], labels),
        "loss after": cross_entropy(forward(ours, images)[2], labels),
        "accuracy on test images": accuracy(ours, test_images, test_labels),
        "largest difference from PyTorch": max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours),
    }
    for name, value in found.items():
        print(f"{name:32}{value:.3g}")
    return found


if __name__ == "__main__":
    main()
