"""Save and resume a loop of one's own, exactly. Takes a few seconds on one core:

python examples/resume.py

What has to be saved: the model's state dict (it holds all of the method's state), the optimizer's,
the scheduler's, torch's random-number state (here dropout draws from it) and the step. Then the
resumed run is the unbroken one, bit for bit, wherever it was interrupted.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import spectrain

STEPS, STOP_AT = 80, 37  # resampling every 10 steps, a new SVD every 40


class Run:
    """A model with its optimizer and scheduler, trained by SST on data that follow from the step."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(16, 64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 4),
        )
        method = spectrain.SST(rank=4, resample_every=10, iterations_per_round=4, warmup=2)
        spectrain.apply(self.model, method, report=None)
        self.optimizer = torch.optim.AdamW(spectrain.param_groups(self.model, lr=5e-3))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        spectrain.attach(self.model, self.optimizer)
        self.step = 0

    def train(self, until: int) -> float:
        """Train up to step `until`; the last loss."""
        while self.step < until:
            x = torch.randn(64, 16, generator=torch.Generator().manual_seed(self.step))
            loss = nn.functional.mse_loss(self.model(x), torch.tanh(x[:, :4] * x[:, 4:8]))
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)  # tensors and numbers only: no code is run
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        self.step = state["step"]


unbroken = Run(seed=0)
print(f"unbroken run:    {STEPS} steps, last loss {unbroken.train(STEPS):.9f}")

with tempfile.TemporaryDirectory() as folder:
    saved = Path(folder) / "checkpoint.pt"
    first = Run(seed=0)
    first.train(STOP_AT)
    first.save(saved)
    second = Run(seed=123)  # another start: all that counts comes from the file
    second.load(saved)
print(f"interrupted run: {STOP_AT} steps, then resumed, last loss {second.train(STEPS):.9f}")

pairs = zip(unbroken.model.state_dict().values(), second.model.state_dict().values(), strict=True)
same = all(torch.equal(a, b) for a, b in pairs)
print("all weights are identical, bit for bit" if same else "the weights differ")
raise SystemExit(0 if same else 1)
