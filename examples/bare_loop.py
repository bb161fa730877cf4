"""Sparse Spectral Training of an MLP, in a plain PyTorch loop. Takes a few seconds on one core:

python examples/bare_loop.py
"""

import torch
from torch import nn

import spectrain

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).requires_grad_(False)
model = nn.Sequential(
    nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8)
)

spectrain.apply(model, spectrain.SST(rank=8, resample_every=50, warmup=5))
optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=1e-2))
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=600)
spectrain.attach(model, optimizer)  # from here on, optimizer.step() does the rest

for step in range(1, 601):
    x = torch.randn(128, 32)
    loss = nn.functional.mse_loss(model(x), teacher(x))
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 150 == 0 or step == 1:
        print(f"step {step:3d}: mean squared error {loss.item():.4f}")

before = model(x)
spectrain.merge(model)
difference = (model(x) - before).abs().max().item()
print(f"merged: {', '.join(type(layer).__name__ for layer in model)} again")
print(f"largest difference of the outputs: {difference:.1e}")
