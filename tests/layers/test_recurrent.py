"""Cells and stacks against torch's own modules, weight for weight, and against what padding must not do."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fathom.layers.recurrent import AdditiveAttention, Cell, RecurrentStack, States, make_cell, reversal, unroll

CELLS = ("rnn", "lstm", "gru")
TORCHS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
INPUTS, UNITS, ROWS, STEPS = 5, 7, 6, 9
LENGTHS = torch.tensor([9, 1, 4, 7, 2, 9])


def moved(stack: RecurrentStack, theirs: nn.RNNBase) -> None:
    """Put the reference's weights into our cells."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    with torch.no_grad():
        for layer, cells in enumerate(stack.layers):
            for cell, suffix in zip(cells, ("", "_reverse"), strict=False):
                for ours, name in zip(cell.parameters_in_order(), names, strict=True):
                    ours.copy_(getattr(theirs, f"{name}_l{layer}{suffix}"))


def twins(cell: str, depth: int, both: bool, fast: bool) -> tuple[RecurrentStack, nn.RNNBase]:
    torch.manual_seed(0)
    theirs = TORCHS[cell](INPUTS, UNITS, depth, batch_first=True, bidirectional=both)
    stack = RecurrentStack(cell, INPUTS, UNITS, depth, both, fast=fast)
    moved(stack, theirs)
    return stack, theirs


def ends(states: Tensor | tuple[Tensor, Tensor], both: bool) -> Tensor:
    """Return the states [B, D] in which the reference's last layer ends, from those of all layers and directions."""
    h = states[0] if isinstance(states, tuple) else states
    return torch.cat([h[-2], h[-1]], dim=-1) if both else h[-1]


def sequences() -> Tensor:
    return torch.randn(ROWS, STEPS, INPUTS, generator=torch.Generator().manual_seed(1))


def run(cell: Cell, x: Tensor, fast: bool) -> list[Tensor]:
    """Return outputs, last state, and gradients of a loss that depends on all of them."""
    x = x.clone().requires_grad_()
    y, state = unroll(cell, x, fast=fast)
    loss = y.square().sum() + sum((part * (i + 1)).sum() for i, part in enumerate(state))
    return [y, *state, *torch.autograd.grad(loss, [x, *cell.parameters()])]


@pytest.mark.parametrize("cell", CELLS)
def test_the_kernel_takes_the_steps_of_the_equations(cell: str) -> None:
    torch.manual_seed(0)
    step = make_cell(cell, INPUTS, UNITS)
    for parameter in step.parameters():
        nn.init.normal_(parameter, std=0.4)
    for by_kernel, by_hand in zip(run(step, sequences(), True), run(step, sequences(), False), strict=True):
        torch.testing.assert_close(by_kernel, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_a_step_are_those_of_finite_differences(cell: str) -> None:
    torch.manual_seed(0)
    step = make_cell(cell, 2, 3).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: unroll(step, x, fast=False)[0], (x, *step.parameters()))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("depth", "both"), [(1, False), (3, False), (1, True), (2, True)])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stack_equals_torchs_module_in_values_and_gradients(cell: str, depth: int, both: bool, fast: bool) -> None:
    stack, theirs = twins(cell, depth, both, fast)
    assert sum(p.numel() for p in stack.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, same = sequences().requires_grad_(), sequences().requires_grad_()
    (ours, last), (reference, states) = stack(x), theirs(same)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, ends(states, both), rtol=0, atol=1e-6)
    ours.square().sum().backward()
    reference.square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-5, atol=1e-6)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    for layer, cells in enumerate(stack.layers):
        for one, suffix in zip(cells, ("", "_reverse"), strict=False):
            for parameter, name in zip(one.parameters_in_order(), names, strict=True):
                expected = getattr(theirs, f"{name}_l{layer}{suffix}").grad
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_read_by_neither_direction(cell: str, both: bool) -> None:
    """The reference gets packed sequences; ours keep their shape. Outputs, last states and gradients are equal."""
    stack, theirs = twins(cell, 2, both, True)
    x, same = sequences().requires_grad_(), sequences().requires_grad_()
    ours, last = stack(x, LENGTHS)
    packed, states = theirs(pack_padded_sequence(same, LENGTHS, batch_first=True, enforce_sorted=False))
    reference, _ = pad_packed_sequence(packed, batch_first=True)
    real = torch.arange(STEPS) < LENGTHS[:, None]
    torch.testing.assert_close(ours[real], reference[real], rtol=0, atol=1e-6)
    torch.testing.assert_close(last, ends(states, both), rtol=0, atol=1e-6)
    (ours * real[..., None]).square().sum().backward()
    reference.square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-5, atol=1e-6)
    assert not x.grad[~real].any()


def test_a_row_without_steps_ends_in_zeros() -> None:
    stack, _ = twins("lstm", 1, True, True)
    lengths = torch.tensor([9, 0, 4, 7, 2, 9])
    _, last = stack(sequences(), lengths)
    assert not last[1].any() and last[0].any()


def test_rows_are_reversed_within_their_lengths() -> None:
    order = reversal(torch.tensor([4, 2, 0]), 4)
    assert order.tolist() == [[3, 2, 1, 0], [1, 0, 2, 3], [0, 1, 2, 3]]
    assert torch.equal(order.gather(1, order), torch.arange(4).expand(3, 4))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_read_in_parts_is_the_sequence(cell: str, fast: bool) -> None:
    stack, _ = twins(cell, 2, False, fast)
    x, states = sequences(), States(2)
    parts = [stack.extend(part, states) for part in x.split((4, 1, 1, 3), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), stack(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_on_the_left_leaves_states_alone(cell: str) -> None:
    stack, _ = twins(cell, 2, False, True)
    x, states = sequences(), States(2)
    real = torch.arange(STEPS) >= STEPS - LENGTHS[:, None]
    padded = stack.extend(x, states, real)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, kept = stack.extend(x[row : row + 1, STEPS - length :], own := States(2)), own.layers
        torch.testing.assert_close(padded[row, STEPS - length :], alone[0], rtol=0, atol=1e-6)
        for ours, expected in zip(states.layers, kept, strict=True):
            for part, other in zip(ours, expected, strict=True):
                torch.testing.assert_close(part[row], other[0], rtol=0, atol=1e-6)


def test_states_go_on_in_another_order() -> None:
    stack, _ = twins("lstm", 2, False, True)
    x, states, rows = sequences(), States(2), torch.tensor([3, 3, 0])
    stack.extend(x[:, :4], states)
    states.reorder(rows)
    torch.testing.assert_close(stack.extend(x[rows, 4:], states), stack(x)[0][rows, 4:], rtol=0, atol=1e-6)


def test_recurrent_weights_begin_orthogonal_and_forget_gates_open() -> None:
    torch.manual_seed(0)
    cell = make_cell("lstm", INPUTS, UNITS, forget_bias=1.5)
    for block in cell.weight_state.detach().chunk(4):
        torch.testing.assert_close(block @ block.T, torch.eye(UNITS), rtol=0, atol=1e-5)
    biases = (cell.bias_input + cell.bias_state).detach().chunk(4)
    assert [float(bias.unique()) for bias in biases] == [0.0, 1.5, 0.0, 0.0]


def test_an_open_forget_gate_keeps_gradients_alive_over_many_steps() -> None:
    """After 200 steps the first input still counts for an LSTM; for Elman's network whose weights shrink a state by a
    tenth each step it is lost."""
    torch.manual_seed(0)
    x = torch.randn(1, 200, INPUTS)
    sizes = {}
    for name in ("lstm", "rnn"):
        cell = make_cell(name, INPUTS, UNITS, forget_bias=8.0)
        if name == "rnn":
            cell.weight_state.data *= 0.9
        given = x.clone().requires_grad_()
        unroll(cell, given)[0][:, -1].sum().backward()
        sizes[name] = float(given.grad[0, 0].norm())
    assert sizes["lstm"] > 1e-3 and sizes["rnn"] < 1e-8


@pytest.mark.parametrize("cell", CELLS)
def test_states_stay_exact_under_half_precision(cell: str) -> None:
    stack, _ = twins(cell, 2, True, True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = stack(sequences(), LENGTHS)
    torch.testing.assert_close(rounded.float(), stack(sequences(), LENGTHS)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_can_be_had_in_evaluation(cell: str) -> None:
    stack, _ = twins(cell, 2, True, True)
    x, same = sequences().requires_grad_(), sequences().requires_grad_()
    stack.eval()(x, LENGTHS)[0].sum().backward()
    stack.train()(same, LENGTHS)[0].sum().backward()
    torch.testing.assert_close(x.grad, same.grad)


def test_dropout_is_between_layers_and_in_training_only() -> None:
    torch.manual_seed(0)
    one, two = (RecurrentStack("gru", INPUTS, UNITS, depth, dropout=0.5) for depth in (1, 2))
    x = sequences()
    assert torch.equal(one(x)[0], one(x)[0]) and not torch.equal(two(x)[0], two(x)[0])
    assert torch.equal(two.eval()(x)[0], two(x)[0])


@torch.no_grad()
def test_additive_attention_is_the_papers() -> None:
    torch.manual_seed(0)
    attend, query, steps = AdditiveAttention(4, 3), torch.randn(2, 4), torch.randn(2, 5, 4)
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    weights, found = attend.weights(query, steps, real), attend(query, steps, real)
    for row in range(2):
        scores = [
            float(attend.score.weight[0] @ torch.tanh(attend.query(query[row]) + attend.key.weight @ steps[row, t]))
            for t in range(int(real[row].sum()))
        ]
        expected = torch.tensor(scores).softmax(0)
        torch.testing.assert_close(weights[row, : len(scores)], expected)
        assert not weights[row, len(scores) :].any()
        torch.testing.assert_close(found[row], expected @ steps[row, : len(scores)])
    assert not attend(query, steps, torch.zeros(2, 5, dtype=torch.bool)).any()
