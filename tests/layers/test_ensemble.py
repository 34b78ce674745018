"""Layers of several members against the same members computed one by one."""

import torch
from torch.nn import functional as F

from fathom.layers.ensemble import SharedLinear
from fathom.layers.heads import EnsembleLinear, Head


def test_each_member_is_a_linear_layer_with_rescaled_weights():
    torch.manual_seed(0)
    layer, x = SharedLinear(4, 5, 3, first=True), torch.randn(6, 4, 5)
    with torch.no_grad():
        layer.scale_out.normal_()
    out = layer(x)
    for k in range(4):
        weight = layer.scale_in[k][:, None] * layer.weight * layer.scale_out[k]  # [I, O]
        torch.testing.assert_close(out[:, k], F.linear(x[:, k], weight.T, layer.bias[k]))


def test_the_first_layer_gives_members_different_views_of_one_input():
    torch.manual_seed(0)
    out = SharedLinear(4, 16, 3, first=True)(torch.randn(6, 1, 16))
    assert out.shape == (6, 4, 3)
    assert all(not torch.allclose(out[:, 0], out[:, k]) for k in range(1, 4))


def test_gradients_of_a_shared_layer_are_those_of_finite_differences():
    torch.manual_seed(0)
    layer = SharedLinear(2, 3, 4, first=True).double()
    x = torch.randn(3, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_ensemble_linear_is_one_linear_layer_a_member():
    torch.manual_seed(0)
    layer, x = EnsembleLinear(3, 5, 2), torch.randn(4, 3, 5)
    for k in range(3):
        torch.testing.assert_close(layer(x)[:, k], F.linear(x[:, k], layer.weight[k].T, layer.bias[k]))


def test_a_head_keeps_the_member_axis():
    assert Head(5, 2)(torch.randn(4, 5)).shape == (4, 1, 2)
    assert Head(5, 2, members=3)(torch.randn(4, 3, 5)).shape == (4, 3, 2)


def test_a_heads_dropout_acts_in_training_only():
    torch.manual_seed(0)
    head, x = Head(64, 2, dropout=0.5), torch.randn(4, 64)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))
