"""Optimisers: PyTorch's own where it has them, and two short ones.

Sign of a momentum: Lion. An orthogonal momentum: Muon. Weight decay is decoupled from the loss for all of them (but
for `adam`, `sgd` and `rmsprop`, whose decay is added to the gradient, as their papers have it), and vectors (biases,
norms) are never decayed.

Three attributes of a parameter are heeded: `no_weight_decay = True`, `learning_rate_scale`, a factor, and
`learning_rate_from`, the share of the run from which it moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fathom.engine.plan import Plan

MUON_ADAMW_RATE = 0.1  # Muon's companion for vectors and embeddings runs at this share of Muon's learning rate
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steep at zero, so that five iterations are enough


def build(
    parameters: Sequence[nn.Parameter], plan: Plan, device: torch.device, embeddings: frozenset[int] = frozenset()
) -> list[Optimizer]:
    """Return the optimisers of one phase: one, or two where Muon leaves some parameters to AdamW.

    Each group's `scale` is its share of the scheduled learning rate, `from` the share of the run at which it begins.

    Args:
        parameters: what the phase moves.
        embeddings: `id`s of embedding tables, which Muon leaves alone.
    """
    if plan.optimizer != "muon":
        return [_build(plan.optimizer, parameters, plan, device)]
    matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    built = [_build("muon", matrices, plan, device)] if matrices else []
    return built + ([_build("adamw", others, plan, device, MUON_ADAMW_RATE)] if others else [])


def _build(
    name: str, parameters: Iterable[nn.Parameter], plan: Plan, device: torch.device, scale: float = 1.0
) -> Optimizer:
    groups: Any = _groups(parameters, plan.weight_decay, scale)
    rate, betas = plan.learning_rate, (plan.beta1, plan.beta2)
    fused = device.type in ("cpu", "cuda", "mps")
    match name:
        case "adamw":
            return AdamW(groups, rate, betas, fused)
        case "adam":
            return torch.optim.Adam(groups, rate, betas, fused=fused)
        case "sgd":
            return torch.optim.SGD(groups, rate, plan.momentum, nesterov=plan.momentum > 0, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(groups, rate, momentum=plan.momentum, foreach=True)
        case "lion":
            return Lion(groups, rate, betas)
        case _:
            return Muon(groups, rate, plan.momentum)


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float, scale: float) -> list[dict[str, Any]]:
    """Gather parameters that share a weight decay, a learning rate, and when they begin to move."""
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decays = p.ndim > 1 and not getattr(p, "no_weight_decay", False)
        factor, start = getattr(p, "learning_rate_scale", 1.0), getattr(p, "learning_rate_from", 0.0)
        groups.setdefault((weight_decay if decays else 0.0, scale * factor, start), []).append(p)
    return [{"params": members, "weight_decay": d, "scale": s, "from": f} for (d, s, f), members in groups.items()]


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, of which each group of another weight decay costs a small model a tenth of its step.

    So groups that differ in nothing else are made one, and its members that decay are shrunk by one call beforehand,
    as the fused kernel itself does it.

    Source: Loshchilov, Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], fused: bool) -> None:
        merged: dict[tuple[float, float], dict[str, Any]] = {}
        for group in groups:
            shared = {"scale": group["scale"], "from": group["from"]}
            one = merged.setdefault((group["scale"], group["from"]), {"params": [], **shared, "shrinking": []})
            one["params"] += group["params"]
            if group["weight_decay"]:
                one["shrinking"].append((group["params"], group["weight_decay"]))
        super().__init__(list(merged.values()), lr, betas, weight_decay=0.0, fused=fused)
        self._moves: list[_Move] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        skipped = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for members, decay in group["shrinking"]:
                amount = group["lr"] * decay
                moving = [p for p in members if p.grad is not None]
                if moving:
                    kept = 1 - amount if skipped is None else 1 - amount * (1 - skipped)
                    torch._foreach_mul_(moving, kept)
        if skipped is None and self._begun():
            for move in self._moves:
                move()
            return
        for move in self._moves:
            move.part()
        self._moves = []
        super().step()

    step.hooked = True  # type: ignore[attr-defined]  # keeps PyTorch from wrapping it for its profiler, at 10 µs a step

    def _begun(self) -> bool:
        """Whether every weight moves and has its state, on a processor, in one piece; then `_moves` move them."""
        if self._moves and all(move.holds(self.state) for move in self._moves):
            return True
        everything = [p for group in self.param_groups for p in group["params"]]
        plain = all(type(p) is nn.Parameter and p.device.type == "cpu" for p in everything)
        if not plain or any(p.grad is None or p not in self.state for p in everything):
            return False
        for move in self._moves:
            move.part()
        self._moves = [_Move(group, self.state) for group in self.param_groups]
        return True


class _Move:
    """A call of the fused kernel as PyTorch makes it, without its way there, which takes a small model longer.

    Each weight counts its steps; where all have come equally far, one count does.
    """

    def __init__(self, group: dict[str, Any], state: Any) -> None:
        self.group, self.members = group, list(group["params"])
        self.states = [state[p] for p in self.members]
        self.first = [each["exp_avg"] for each in self.states]
        self.second = [each["exp_avg_sq"] for each in self.states]
        self.steps = [each["step"] for each in self.states]
        self.together = len({float(step) for step in self.steps}) == 1
        if self.together:
            self.steps = self.steps[:1] * len(self.steps)
            self._count(self.steps)

    def part(self) -> None:
        """Have each weight count by itself again, as PyTorch's own way needs it."""
        if self.together:
            self._count([step.clone() for step in self.steps])

    def _count(self, steps: list[Tensor]) -> None:
        for each, step in zip(self.states, steps, strict=True):
            each["step"] = step

    def holds(self, state: Any) -> bool:
        """Whether states and gradients are still there: a rewound run has put others in their place."""
        return all(
            p.grad is not None and state.get(p) is each and each["exp_avg"] is average
            for p, each, average in zip(self.members, self.states, self.first, strict=True)
        )

    def __call__(self) -> None:
        torch._foreach_add_(self.steps[:1] if self.together else self.steps, 1)
        torch._fused_adamw_(
            self.members,
            [p.grad for p in self.members],
            self.first,
            self.second,
            [],
            self.steps,
            amsgrad=False,
            lr=self.group["lr"],
            beta1=self.group["betas"][0],
            beta2=self.group["betas"][1],
            weight_decay=0.0,
            eps=self.group["eps"],
            maximize=False,
        )


class Lion(Optimizer):
    """Steps of one length, by the sign of an averaged gradient.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            grads: list[Tensor] = [p.grad for p in moving]
            momenta = [_state(self, p, "momentum") for p in moving]
            steps = torch._foreach_lerp(momenta, grads, 1 - beta1)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(moving, 1 - rate * group["weight_decay"])
            torch._foreach_add_(moving, steps, alpha=-rate)
            torch._foreach_lerp_(momenta, grads, 1 - beta2)


class Muon(Optimizer):
    """Momentum whose every matrix is replaced by the nearest orthogonal one, so that all directions move alike.

    A convolution's kernel [O, I, H, W] counts as the matrix [O, I·H·W], a stack [K, I, O] as K matrices. The step's
    length is scaled by √max(1, rows/columns).

    Source: Jordan et al., Muon: An Optimizer for Hidden Layers in Neural Networks, 2024.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, beta = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = _state(self, p, "momentum").lerp_(p.grad, 1 - beta)
                ahead = p.grad.lerp(momentum, beta)  # Nesterov's look ahead
                matrix = ahead if p.ndim == 3 else ahead.flatten(1)  # [O, I·H·W] or [K, I, O]
                length = max(1.0, matrix.shape[-2] / matrix.shape[-1]) ** 0.5
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(orthogonalise(matrix).view_as(p), alpha=-rate * length)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return UVᵀ of the singular value decomposition USVᵀ, roughly (singular values between 0.7 and 1.2).

    A quintic Newton–Schulz iteration: only matrix products, no decomposition.

    Args:
        matrix: [..., M, N].
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix  # bf16 is precise enough, and fast on a GPU
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    long = x.shape[-1] > 2 * x.shape[-2] and x.dtype != torch.bfloat16
    x = _by_gram(x, iterations) if long else _by_products(x, iterations)
    return (x if wide else x.mT).to(matrix.dtype).contiguous()


def _by_products(x: Tensor, iterations: int) -> Tensor:
    """Iterate x ← (a + b·xxᵀ + c·(xxᵀ)²) x, x of shape [..., M, N]."""
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT  # [..., M, M]
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _by_gram(x: Tensor, iterations: int) -> Tensor:
    """The same on the small matrix xxᵀ alone: for x much longer than high, a third of the work.

    With P = a + bG + cG² and G = xxᵀ, the next G is PGP, and the last x is the product of all P times the first.
    """
    a, b, c = QUINTIC
    gram = x @ x.mT  # [..., M, M]
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    total = identity
    for _ in range(iterations):
        turn = a * identity + b * gram + c * gram @ gram
        total = turn @ total
        gram = turn @ gram @ turn
    return total @ x


def _state(optimizer: Optimizer, parameter: Tensor, name: str) -> Tensor:
    """Return the parameter's tensor of that name, zero at first."""
    state = optimizer.state[parameter]
    if name not in state:
        state[name] = torch.zeros_like(parameter)
    return state[name]
