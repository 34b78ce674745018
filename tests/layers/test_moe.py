"""A mixture of experts: each token goes through the experts of its highest scores, weighted, however it is computed."""

import pytest
import torch
from torch.nn import functional as F

from fathom.core.errors import ConfigError
from fathom.layers.moe import MixtureOfExperts, unevenness


def mixture(gated: bool, active: int = 2, experts: int = 5) -> MixtureOfExperts:
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, 12, experts, active, gated)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def token_by_token(layer: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """Return what the formula says of one token [D]."""
    probability = (layer.router.weight @ x).softmax(0)
    chosen = probability.argsort(descending=True)[: layer.active].tolist()
    total = torch.zeros_like(x)
    for e in chosen:
        hidden = layer.expand[e] @ x
        hidden = F.silu(hidden[:12]) * hidden[12:] if layer.gated else F.gelu(hidden, approximate="tanh")
        total = total + probability[e] / probability[chosen].sum() * (layer.contract[e] @ hidden)
    return total


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("active", [1, 2, 5])
def test_each_token_goes_through_the_experts_of_its_highest_scores(gated: bool, active: int) -> None:
    layer, x = mixture(gated, active), torch.randn(3, 4, 8)
    expected = torch.stack([token_by_token(layer, token) for token in x.flatten(0, 1)]).view_as(x)
    found, scores = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores, x @ layer.router.weight.T)


def test_grouping_tokens_and_leaving_out_have_the_same_gradients() -> None:
    """Eager code sends each expert its tokens; a compiled graph sends all to each, and leaves out. An expert that
    nobody is sent to is among them."""
    x, gradients = torch.randn(20, 8), []
    for compiled in (False, True):
        layer = mixture(True)
        with torch.no_grad():
            layer.router.weight[3] = -10 * x.mean(0)
            layer.router.weight[3, 0] = 0.0
        best, chosen = layer.router(x).topk(2)
        found = (layer._each if compiled else layer._grouped)(x, chosen, best.softmax(-1))
        found.square().sum().backward()
        gradients.append({name: p.grad for name, p in layer.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_unevenness_is_least_where_tokens_are_spread() -> None:
    even = torch.eye(4).repeat(3, 1)[None] * 20  # [1, 12, 4], each token sure of one expert, each expert of three
    crowded = torch.zeros_like(even)
    crowded[..., 0] = 20
    real = torch.ones(1, 12, dtype=torch.bool)
    torch.testing.assert_close(unevenness([even], 1, real), torch.tensor(1.0))
    torch.testing.assert_close(unevenness([crowded], 1, real), torch.tensor(4.0))
    torch.testing.assert_close(unevenness([even, crowded], 1, real), torch.tensor(2.5))
    real[0, 1:] = False  # one token alone crowds one expert
    torch.testing.assert_close(unevenness([even], 1, real), torch.tensor(4.0))
    assert unevenness([even], 1, torch.zeros_like(real)) == 0


def test_more_active_experts_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.active' was given 6; expected 1 to 5"):
        MixtureOfExperts(8, 12, 5, 6)
