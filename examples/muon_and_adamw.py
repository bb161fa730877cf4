"""Two optimizers: Muon steps the factors, which are matrices, AdamW whatever is not. A few seconds:

python examples/muon_and_adamw.py
"""

import torch
from torch import nn

import spectrain

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).requires_grad_(False)
model = nn.Sequential(
    nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8)
)
spectrain.apply(model, spectrain.GaLore(rank=8, refresh_every=50, scale=1.0))

groups = spectrain.param_groups(model, lr=1e-2)
matrices = [g | {"params": [p for p in g["params"] if p.ndim == 2]} for g in groups]
vectors = [g | {"params": [p for p in g["params"] if p.ndim != 2]} for g in groups]
optimizers = [torch.optim.Muon(matrices), torch.optim.AdamW(vectors)]
spectrain.attach(model, optimizers)  # the method's clock ticks when both have stepped

for step in range(1, 301):
    x = torch.randn(128, 32)
    loss = nn.functional.mse_loss(model(x), teacher(x))
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if step % 100 == 0 or step == 1:
        print(f"step {step:3d}: mean squared error {loss.item():.4f}")

spectrain.merge(model)
