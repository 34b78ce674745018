"""Recurrent cells, and stacks of them: a sequence is read one step at a time, and a state carries what was read.

    ElmanCell, LSTMCell, GRUCell   one step, as the papers' equations have it
    unroll                         a cell along a sequence: by those equations, or on torch's kernels
    RecurrentStack                 layers of cells, in one direction or both
    AdditiveAttention              one vector of a sequence, by how much each step matters
    States                         what a stack keeps between calls that go on with the same sequences

Notation of the equations: x_t is the input of step t, h_t the state that is given out, σ the logistic function, ⊙ the
product element by element; W weighs inputs, U weighs states. A cell holds the W of all its gates in one matrix, one
below the other, and so its U and biases, because one large product is faster than several small ones. Order and
meaning of the parameters are those of torch.nn.RNN, LSTM and GRU, so that weights can be moved either way; like there,
W and U each have a bias, of which one would do in all but the GRU.

Source: Elman, Finding Structure in Time, 1990; Hochreiter, Schmidhuber, Long Short-Term Memory, 1997; Gers,
Schmidhuber, Cummins, Learning to Forget: Continual Prediction with LSTM, 2000; Cho, van Merriënboer, Gulcehre,
Bahdanau, Bougares, Schwenk, Bengio, Learning Phrase Representations using RNN Encoder-Decoder, 2014; Schuster,
Paliwal, Bidirectional Recurrent Neural Networks, 1997; Bahdanau, Cho, Bengio, Neural Machine Translation by Jointly
Learning to Align and Translate, 2015.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]  # (h,), of an LSTM (h, c); each [B, H]
CellName = Literal["rnn", "lstm", "gru"]


class Cell(nn.Module, ABC):
    """One step of a recurrent network: input [B, I] and state, each part [B, H], -> the next state.

    Args:
        inputs: I.
        units: H.

    Attributes:
        gates: G, how many vectors of H units a step computes from its input.
        parts: of a state: 1, h alone; 2, h and c.
    """

    gates: ClassVar[int]
    parts: ClassVar[int] = 1

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.weight_input = nn.Parameter(torch.empty(self.gates * units, inputs))  # W [G·H, I]
        self.weight_state = nn.Parameter(torch.empty(self.gates * units, units))  # U [G·H, H]
        self.bias_input = nn.Parameter(torch.zeros(self.gates * units))
        self.bias_state = nn.Parameter(torch.zeros(self.gates * units))
        for gate in range(self.gates):
            block = slice(gate * units, (gate + 1) * units)
            nn.init.xavier_uniform_(self.weight_input.data[block])
            # A state passes through U once a step: what keeps lengths can do so many times without harm.
            nn.init.orthogonal_(self.weight_state.data[block])

    def start(self, x: Tensor) -> State:
        """Return the state before the first step of sequences x [B, …]: zeros."""
        return tuple(x.new_zeros(x.shape[0], self.units) for _ in range(self.parts))

    @abstractmethod
    def forward(self, x: Tensor, state: State) -> State:
        """Return the state after one step that reads x [B, I]."""

    @abstractmethod
    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return h of every step [B, T, H] and the last state, for x [B, T, I], on torch's kernel."""

    def parameters_in_order(self) -> list[Tensor]:
        """Return what torch's kernels take, in their order."""
        return [self.weight_input, self.weight_state, self.bias_input, self.bias_state]


class ElmanCell(Cell):
    """The simple recurrent network, with tanh.

    h_t = tanh(W x_t + U h_{t−1} + b)
    """

    gates = 1

    def forward(self, x: Tensor, state: State) -> State:
        (h,) = state
        of_input, of_state = (
            F.linear(x, self.weight_input, self.bias_input),
            F.linear(h, self.weight_state, self.bias_state),
        )
        return (torch.tanh(of_input + of_state),)

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, h = torch.rnn_tanh(x, state[0][None], self.parameters_in_order(), *_settings())
        return y, (h[0],)


class LSTMCell(Cell):
    """Long short-term memory, with a forget gate, without peepholes.

    i_t = σ(W_i x_t + U_i h_{t−1} + b_i)            how much is written
    f_t = σ(W_f x_t + U_f h_{t−1} + b_f)            how much is kept
    g_t = tanh(W_g x_t + U_g h_{t−1} + b_g)         what is written
    o_t = σ(W_o x_t + U_o h_{t−1} + b_o)            how much is shown
    c_t = f_t ⊙ c_{t−1} + i_t ⊙ g_t                 the memory: kept and added to, never multiplied by a matrix
    h_t = o_t ⊙ tanh(c_t)

    The paper of 1997 has no f_t (it is one). Where f_t is near one, gradients pass through c_t undiminished, which is
    the point of the whole; so b_f had better start above zero (`forget_bias`: Jozefowicz, Zaremba, Sutskever, An
    Empirical Exploration of Recurrent Network Architectures, 2015).
    """

    gates, parts = 4, 2  # in the order i, f, g, o; h and c

    def __init__(self, inputs: int, units: int, forget_bias: float = 1.0) -> None:
        super().__init__(inputs, units)
        nn.init.constant_(self.bias_input.data[units : 2 * units], forget_bias)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        gates = F.linear(x, self.weight_input, self.bias_input) + F.linear(h, self.weight_state, self.bias_state)
        i, f, g, o = gates.chunk(4, dim=-1)  # [B, H] each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        begin = (state[0][None], state[1][None])
        y, h, c = torch.lstm(x, begin, self.parameters_in_order(), *_settings())
        return y, (h[0], c[0])


class GRUCell(Cell):
    """The gated recurrent unit: a memory without a separate c_t.

    r_t = σ(W_r x_t + U_r h_{t−1} + b_r)            how much of the past the candidate sees
    z_t = σ(W_z x_t + U_z h_{t−1} + b_z)            how much of the past is kept
    n_t = tanh(W_n x_t + b_n + r_t ⊙ (U_n h_{t−1} + b′_n))
    h_t = z_t ⊙ h_{t−1} + (1 − z_t) ⊙ n_t

    The paper resets the state before U_n, U_n (r_t ⊙ h_{t−1}). Here, as in torch's and cuDNN's kernels, r_t comes after
    it: all three products with h_{t−1} are then one, and results are alike.
    """

    gates = 3  # in the order r, z, n

    def forward(self, x: Tensor, state: State) -> State:
        (h,) = state
        of_input = F.linear(x, self.weight_input, self.bias_input).chunk(3, dim=-1)  # [B, H] each
        of_state = F.linear(h, self.weight_state, self.bias_state).chunk(3, dim=-1)
        r = (of_input[0] + of_state[0]).sigmoid()
        z = (of_input[1] + of_state[1]).sigmoid()
        n = (of_input[2] + r * of_state[2]).tanh()
        return (z * h + (1 - z) * n,)

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, h = torch.gru(x, state[0][None], self.parameters_in_order(), *_settings())
        return y, (h[0],)


def unroll(
    cell: Cell, x: Tensor, state: State | None = None, real: Tensor | None = None, fast: bool = True
) -> tuple[Tensor, State]:
    """Return h of every step [B, T, H] and the last state, for sequences x [B, T, I].

    Args:
        state: before the first step; None: zeros.
        real: [B, T] bool; steps at which it is false leave the state of their row as it was. This goes by the
            equations; where padding stands on the right it is not needed.
        fast: by torch's kernel rather than the cell's equations: the same numbers, but for rounding.
    """
    state = state or cell.start(x)
    by_kernel = fast and real is None
    # Rounding errors of a state add up over the steps, and processors without 16-bit instructions have no kernel at
    # all for LSTMs under autocast. GPUs' kernels know what they do.
    if torch.is_autocast_enabled(x.device.type) and not (by_kernel and x.device.type != "cpu"):
        exact = cell.weight_state.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _unroll(cell, x.to(exact), tuple(part.to(exact) for part in state), real, by_kernel)
    return _unroll(cell, x, state, real, by_kernel)


def _unroll(cell: Cell, x: Tensor, state: State, real: Tensor | None, by_kernel: bool) -> tuple[Tensor, State]:
    if by_kernel:
        return cell.run(x, state)
    found = []
    for t in range(x.shape[1]):
        new = cell(x[:, t], state)
        if real is not None:
            new = tuple(torch.where(real[:, t, None], after, before) for after, before in zip(new, state, strict=True))
        state = new
        found.append(state[0])
    return torch.stack(found, dim=1), state


class RecurrentStack(nn.Module):
    """Layers of cells, each reading what the one below gives out: [B, T, I] -> [B, T, D] and [B, D].

    D is H, or 2·H where both directions are read.

    The backward direction reads a row from its last real step to its first. To that end rows are reversed within their
    lengths by gathering, read forwards, and put back. Shapes stay those of the batch, unlike those of packed sequences,
    so that the network can be compiled and exported, and no padding is ever read by what counts.

    Args:
        cell: "rnn", "lstm" or "gru".
        inputs: I.
        units: H, of each direction.
        depth: layers.
        both: whether each layer reads in both directions.
        dropout: share of units dropped between layers in training, never between steps (Zaremba, Sutskever, Vinyals,
            Recurrent Neural Network Regularization, 2014).
        forget_bias: an LSTM's.
        fast: whether it runs on torch's kernels.
    """

    def __init__(
        self,
        cell: CellName,
        inputs: int,
        units: int,
        depth: int = 1,
        both: bool = False,
        dropout: float = 0.0,
        forget_bias: float = 1.0,
        fast: bool = True,
    ) -> None:
        super().__init__()
        self.both, self.fast = both, fast
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * units if both else units
        self.layers = nn.ModuleList(
            nn.ModuleList(make_cell(cell, self.width if layer else inputs, units, forget_bias) for _ in range(1 + both))
            for layer in range(depth)
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the last layer gives out at each step, and the state in which each of its directions ends.

        Args:
            x: [B, T, I].
            lengths: [B], real steps of each row, which stand on the left; None: all T.

        Returns:
            [B, T, D], at padding anything; and [B, D]: forwards the state at the last real step, backwards that at the
            first, zeros for a row without any.
        """
        order = reversal(lengths, x.shape[1]) if self.both and lengths is not None else None
        for index, cells in enumerate(self.layers):
            if index:
                x = self.dropout(x)
            y, (end, *_) = unroll(cells[0], x, fast=self.fast)  # type: ignore[index]
            ends, outputs = [end if lengths is None else last_step(y, lengths)], [y]
            if self.both:
                y, (end, *_) = unroll(cells[1], _reversed(x, order), fast=self.fast)  # type: ignore[index]
                outputs.append(_reversed(y, order))
                ends.append(end if lengths is None else last_step(y, lengths))
            x = torch.cat(outputs, dim=-1) if self.both else y
        last = torch.cat(ends, dim=-1) if self.both else ends[0]
        return x, last if lengths is None else last * (lengths > 0)[:, None]

    def extend(self, x: Tensor, states: States, real: Tensor | None = None) -> Tensor:
        """Return what the last layer gives out [B, t, D] at steps x [B, t, I] that follow those that `states` is of.

        Args:
            states: is brought up to date.
            real: [B, t], false at padding, wherever it stands.
        """
        assert not self.both, "what follows is not known when a sequence is read backwards"
        for index, cells in enumerate(self.layers):
            if index:
                x = self.dropout(x)
            x, states.layers[index] = unroll(cells[0], x, states.layers[index], real, self.fast)  # type: ignore[index]
        return x


class States:
    """The state of each layer after what was read so far of B sequences: all that a recurrent network remembers.

    Unlike an attention's cache it does not grow.

    Attributes:
        layers: for each layer its state, or None before the first step.
    """

    def __init__(self, depth: int) -> None:
        self.layers: list[State | None] = [None] * depth

    def reorder(self, rows: Tensor) -> None:
        """Go on with the sequences `rows` [N] of those held: in another order, some more than once, some not at all."""
        self.layers = [state and tuple(part.index_select(0, rows) for part in state) for state in self.layers]


class AdditiveAttention(nn.Module):
    """One vector of a sequence: the mean of its steps, weighted by how well each answers a query.

    e_t = v · tanh(W q + U h_t)        a_t = exp(e_t) / Σ_s exp(e_s)        Σ_t a_t h_t

    Args:
        width: D, of the steps and the query.
        units: A, of the layer between.
    """

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, units)  # W
        self.key = nn.Linear(width, units, bias=False)  # U
        self.score = nn.Linear(units, 1, bias=False)  # v

    def weights(self, query: Tensor, steps: Tensor, real: Tensor | None = None) -> Tensor:
        """Return how much each step counts [B, T]: 0 where it is not real, otherwise summing to one.

        Args:
            query: [B, D].
            steps: [B, T, D].
            real: [B, T] bool; None: all.
        """
        e = self.score(torch.tanh(self.query(query)[:, None] + self.key(steps))).squeeze(-1).float()  # [B, T]
        if real is None:
            return e.softmax(-1)
        return e.masked_fill(~real, torch.finfo(e.dtype).min).softmax(-1) * real  # all 0 for a row without steps

    def forward(self, query: Tensor, steps: Tensor, real: Tensor | None = None) -> Tensor:
        weights = self.weights(query, steps, real).to(steps.dtype)
        return (weights[:, None] @ steps).squeeze(1)  # [B, D]


def make_cell(name: CellName, inputs: int, units: int, forget_bias: float = 1.0) -> Cell:
    """Return a fresh cell of that name."""
    if name == "lstm":
        return LSTMCell(inputs, units, forget_bias)
    return GRUCell(inputs, units) if name == "gru" else ElmanCell(inputs, units)


def reversal(lengths: Tensor, steps: int) -> Tensor:
    """Return which step stands where once each row is reversed within its length: [B] -> [B, T]. It undoes itself."""
    t = torch.arange(steps, device=lengths.device)
    return torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)


def last_step(y: Tensor, lengths: Tensor) -> Tensor:
    """Return the last real step of each row: [B, T, D] -> [B, D]; the first one of a row without any."""
    return y[torch.arange(y.shape[0], device=y.device), (lengths - 1).clamp_min(0)]


def take_steps(x: Tensor, order: Tensor) -> Tensor:
    """Return x [B, T, D] with step order[b, t] of row b at its step t, order being [B, T]."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (rows + order).flatten()).view(*order.shape, x.shape[-1])


def _reversed(x: Tensor, order: Tensor | None) -> Tensor:
    return x.flip(1) if order is None else take_steps(x, order)


def _settings() -> tuple[bool, int, float, bool, bool, bool]:
    """Return what torch's kernels want to know after the weights: whether there are biases, layers, dropout, whether
    gradients may be asked for, whether both directions are read, whether the batch is the first dimension.
    """
    return True, 1, 0.0, torch.is_grad_enabled(), False, True  # an explanation asks for gradients in evaluation too
