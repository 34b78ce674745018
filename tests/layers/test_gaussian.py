"""The divergence of a Gaussian code, against torch's own, and draws from it."""

import torch
from torch.distributions import Normal, kl_divergence

from fathom.layers.gaussian import draw, kl_to_standard


def test_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(50, 7, dtype=torch.float64), 2 * torch.randn(50, 7, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard(mean, log_variance), expected)
    torch.testing.assert_close(kl_to_standard(mean.float(), log_variance.float()), expected.float())


def test_divergence_is_zero_at_the_standard_one_and_keeps_its_digits_near_it() -> None:
    zero = torch.zeros(1, 4)
    assert kl_to_standard(zero, zero).item() == 0
    near = torch.full((1, 1), 1e-4)
    exact = 0.5 * (1e-8 / 2 + 1e-12 / 6)  # of log-variance s: ½ (s²/2 + s³/6 + …)
    assert abs(kl_to_standard(torch.zeros(1, 1), near).item() / exact - 1) < 0.01


def test_draws_have_the_mean_and_variance_and_pass_the_gradient() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.5])
    samples = draw(mean.expand(100_000, 2), log_variance.expand(100_000, 2))
    torch.testing.assert_close(samples.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(samples.var(0), log_variance.exp(), atol=0, rtol=0.03)
    mean.requires_grad_(), log_variance.requires_grad_()
    torch.manual_seed(1)
    sample = draw(mean, log_variance)
    sample.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(2))
    torch.testing.assert_close(log_variance.grad, (sample - mean).detach() / 2)  # d(ε·e^{s/2})/ds = ε·e^{s/2} / 2


def test_draws_repeat_with_the_seed() -> None:
    torch.manual_seed(3)
    first = draw(torch.zeros(5), torch.zeros(5))
    torch.manual_seed(3)
    assert torch.equal(first, draw(torch.zeros(5), torch.zeros(5)))
