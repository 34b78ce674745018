"""The norm by the root of the mean square: the shorter way gives what PyTorch gives, and the same gradients."""

import pytest
import torch

from fathom.layers.norm import RMSNorm


@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 24), (24,), (2, 1, 3, 24)])
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_values_and_gradients_are_pytorchs(shape: tuple[int, ...], epsilon: float) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(24, epsilon).double(), torch.nn.RMSNorm(24, epsilon).double()
    torch.nn.init.normal_(ours.weight, mean=1.0)
    theirs.load_state_dict(ours.state_dict())
    x, back = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found, expected)
    mine = torch.autograd.grad(found, (x, ours.weight), back)
    for gradient, reference in zip(mine, torch.autograd.grad(expected, (x, theirs.weight), back), strict=True):
        torch.testing.assert_close(gradient, reference)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)


def test_the_gradient_is_that_of_small_steps() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(6).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, norm.weight)
    )


def test_a_row_of_zeros_stays_one() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    norm = RMSNorm(8)
    norm(x).sum().backward()
    assert norm(x).abs().max() == 0 and x.grad.isfinite().all()
