import pytest
import torch
from torch import nn

from fathom.engine import optim
from fathom.engine.plan import Plan

CPU = torch.device("cpu")


def _descend(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], steps: int = 20) -> None:
    torch.manual_seed(1)
    target = [torch.randn_like(p) for p in parameters]
    for _ in range(steps):
        loss = sum(((p - t) ** 2 * (1 + p.ndim)).sum() for p, t in zip(parameters, target, strict=True))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def _parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s)) for s in ((4, 6), (6, 4), (6,))]


THEIRS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99)),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.99)),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", THEIRS)
def test_equals_pytorchs_with_weight_decay_on_matrices_only(name: str) -> None:
    ours, theirs = _parameters(), _parameters()
    plan = Plan(optimizer=name, learning_rate=0.01, weight_decay=0.1, momentum=0.9, beta2=0.99)  # type: ignore[arg-type]
    _descend(optim.build(ours, plan, CPU), ours)
    groups = [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0.0}]
    _descend([THEIRS[name](groups)], theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_adamw_counts_the_steps_of_each_weight_that_rests_now_and_then() -> None:
    ours, theirs = _parameters(), _parameters()
    (built,) = optim.build(ours, Plan(learning_rate=0.01, weight_decay=0.0), CPU)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0, fused=True)
    for step in range(14):
        torch.manual_seed(step)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        if step in (5, 6, 9):  # a rest, a second one, and one after all have moved again
            ours[0].grad = theirs[0].grad = None
        built.step()
        reference.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert [float(built.state[p]["step"]) for p in ours] == [11, 14, 14]


def test_muon_equals_pytorchs_on_matrices() -> None:
    ours, theirs = _parameters()[:2], _parameters()[:2]
    plan = Plan(optimizer="muon", learning_rate=0.02, weight_decay=0.1, momentum=0.95)
    _descend(optim.build(ours, plan, CPU), ours, 3)
    _descend([torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")], theirs, 3)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)  # theirs multiplies in bf16


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 7, 4)])
def test_orthogonal_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(shape)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_iteration_on_the_gram_matrix_is_the_same() -> None:
    x = torch.randn(3, 6, 40, dtype=torch.float64)
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(optim._by_gram(x, 5), optim._by_products(x, 5), rtol=1e-9, atol=1e-9)


def test_muon_moves_kernels_and_stacks_and_leaves_vectors_and_embeddings_to_adamw() -> None:
    kernel, stack, table, vector = (nn.Parameter(torch.randn(s)) for s in ((8, 3, 3, 3), (2, 4, 5), (10, 4), (8,)))
    plan = Plan(optimizer="muon", learning_rate=0.02)
    built = optim.build([kernel, stack, table, vector], plan, CPU, frozenset({id(table)}))
    muon, adamw = (dict.fromkeys(id(p) for g in o.param_groups for p in g["params"]) for o in built)
    assert set(muon) == {id(kernel), id(stack)} and set(adamw) == {id(table), id(vector)}
    before = kernel.detach().clone()
    _descend(built, [kernel, stack, table, vector], 1)
    moved = torch.linalg.svdvals((kernel.detach() - before).flatten(1))
    assert moved.max() < 2 * moved.min()  # an orthogonal step moves alike in every direction


def test_lion_equals_its_paper() -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    optimizer = optim.Lion([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    value, momentum = parameter.detach().clone(), torch.zeros(1, 3)
    for gradient in (torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[-5.0, 0.02, 1.0]])):
        parameter.grad = gradient.clone()
        optimizer.step()
        update = (0.9 * momentum + 0.1 * gradient).sign()
        momentum = 0.99 * momentum + 0.01 * gradient
        value = value - 0.1 * (update + 0.5 * value)
        torch.testing.assert_close(parameter.detach(), value)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_attributes_of_parameters_are_heeded(name: str) -> None:
    plain, exempt, fast = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    exempt.no_weight_decay = True  # type: ignore[attr-defined]
    fast.learning_rate_scale = 4.0  # type: ignore[attr-defined]
    plan = Plan(optimizer=name, learning_rate=0.1, weight_decay=0.2)  # type: ignore[arg-type]
    (optimizer,) = optim.build([plain, exempt, fast], plan, CPU)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["scale"]
    for p in (plain, exempt, fast):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = [1 - p[0, 0].item() for p in (plain, exempt, fast)]
    assert moved[1] == 0 and moved[0] > 0 and moved[2] == pytest.approx(4 * moved[0], rel=1e-5)
