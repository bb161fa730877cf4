"""Tiny models, batches and the training loop that the tests of the core share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import spectrain
from spectrain.method import Method
from spectrain.parametrizations.base import Parametrization
from spectrain.surgery import parametrized

SHAPES = {"tall": (9, 6), "wide": (6, 9), "square": (7, 7)}  # (out, in)


class Net(nn.Module):
    """A tall, a wide and a square layer, one of them a Conv1D, with and without bias; rank ≤ 5."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.conv = Conv1D(8, 10)
        self.square = nn.Linear(8, 8, bias=False)
        self.wide = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.tall(x)))
        h = torch.tanh(self.conv(h))
        return self.wide(h + torch.tanh(self.square(h)))


def make_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    net = Net()
    nn.init.normal_(net.conv.bias)
    return net.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs (rows, 3, 6) and targets (rows, 3, 5): a function of `step` alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(rows, 3, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, 3, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def adamw(groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups)


class Training:
    """An ordinary training loop: accumulation over two micro-batches, and a scheduler."""

    def __init__(
        self,
        method: Method,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        optimizer: Callable[..., torch.optim.Optimizer] = adamw,
        lr: float = 0.01,
        weight_decay: float = 0.1,
        attach: bool = True,
        net: nn.Module | None = None,
    ) -> None:
        self.dtype = dtype
        self.model = make_net(seed, dtype) if net is None else net
        self.original = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        spectrain.apply(self.model, method, report=None)
        groups = spectrain.param_groups(self.model, lr, weight_decay=weight_decay)
        self.optimizer = optimizer(groups)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: 1 / (1 + t))
        self.losses: list[float] = []
        self.rates: list[list[float]] = []  # as the scheduler sees them, after every step
        if attach:
            spectrain.attach(self.model, self.optimizer)

    def backward(self, step: int, micro_batches: int = 2) -> None:
        x, y = batch(step, self.dtype)
        for xs, ys in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            loss = F.mse_loss(self.model(xs), ys) / micro_batches
            loss.backward()
            self.losses.append(loss.item())

    def step(self, step: int, micro_batches: int = 2) -> None:
        self.backward(step, micro_batches)
        self.optimizer.step()
        self.scheduler.step()
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        self.optimizer.zero_grad()

    def run(self, start: int, stop: int) -> Training:
        for step in range(start, stop):
            self.step(step)
        return self

    @property
    def layers(self) -> list[Parametrization]:
        return [layer for _, layer in parametrized(self.model)]

    def save(self) -> bytes:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        }
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])


def one_layer(
    method: Method,
    shape: tuple[int, int],
    *,
    bias: bool = True,
    kind: str = "Linear",
    dtype: torch.dtype = torch.float64,
) -> tuple[Parametrization, nn.Module]:
    """A layer exchanged for `method`'s, and an ordinary one of the same weight."""
    out, inside = shape
    linear: nn.Module = Conv1D(out, inside) if kind == "Conv1D" else nn.Linear(inside, out, bias)
    linear.to(dtype)
    nn.init.normal_(linear.weight, std=0.5)
    model = nn.Sequential(linear)
    plain = nn.Linear(inside, out, bias).to(dtype)
    with torch.no_grad():
        plain.weight.copy_(linear.weight.mT if kind == "Conv1D" else linear.weight)
        if bias:
            plain.bias.copy_(linear.bias)
    spectrain.apply(model, method, report=None)
    layer = model[0]
    assert isinstance(layer, Parametrization)
    return layer, plain


def disturb(layer: Parametrization, size: float = 0.1) -> None:
    """Move every factor away from its start, so that nothing is zero by accident."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in layer.factors().values():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.add_(size * noise.to(p.dtype))


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, through dictionaries and lists."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def rows_of(layer: Any, matrix: Tensor) -> Tensor:
    """`matrix` so that the basis acts on its left."""
    return matrix if layer.side == "left" else matrix.mT


def steered(
    method: Method | None,
    shape: tuple[int, int],
    optimizer: Callable[..., torch.optim.Optimizer],
    gradients: Iterable[Tensor],  # C_t
    *,
    decay: float = 0.1,
    rate: Callable[[int], float] = lambda t: 0.05,  # of step t = 1, 2, …
    clip: float = 0.0,
    watch: Callable[[Any], None] = lambda layer: None,  # called with the layer before every step
) -> tuple[list[Tensor], Any]:
    """One layer driven by G = C_t + W, exactly: W after every step, and the layer."""
    m, n = shape
    torch.manual_seed(5)
    linear = nn.Linear(n, m, bias=False).double()
    with torch.no_grad():
        tall = torch.randn(max(m, n), min(m, n), dtype=torch.float64)
        linear.weight.copy_(tall if m >= n else tall.mT)
    model = nn.Sequential(linear)
    if method is not None:
        spectrain.apply(model, method, report=None)
        own = optimizer(spectrain.param_groups(model, 0.05, weight_decay=decay))
        spectrain.attach(model, own)
    else:
        own = optimizer([{"params": model.parameters(), "lr": 0.05, "weight_decay": decay}])
    path: list[Tensor] = []
    for t, C in enumerate(gradients, 1):
        watch(model[0])
        W_transposed = model(torch.eye(n, dtype=torch.float64))
        (0.5 * W_transposed.square().sum() + (W_transposed * C.mT).sum()).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in own.param_groups:
            group["lr"] = rate(t)
        own.step()
        own.zero_grad()
        W = model[0].weight if method is None else model[0].dense()
        path.append(W.detach().clone())
    return path, model[0]


def start_of(shape: tuple[int, int]) -> Tensor:
    """W before the first step of `steered`."""
    return steered(None, shape, torch.optim.SGD, [torch.zeros(shape)], rate=lambda t: 0.0)[0][0]


def drift(shape: tuple[int, int], steps: int = 8) -> list[Tensor]:
    """C_t for `steered`."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


class UncorrectedAdam(torch.optim.Optimizer):
    """Adam as in released packages of this field: no bias correction, ε beside √V.

    `correction` is what they multiply the rate by instead.
    """

    betas, eps = (0.9, 0.999), 1e-6

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 1e-3})

    @classmethod
    def correction(cls, t: int) -> float:
        first, second = (1 - beta**t for beta in cls.betas)
        return float(second**0.5 / first)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq")}
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.lerp_(p.grad, 1 - self.betas[0])
                v.lerp_(p.grad.square(), 1 - self.betas[1])
                p.addcdiv_(m, v.sqrt().add_(self.eps), value=-group["lr"])
