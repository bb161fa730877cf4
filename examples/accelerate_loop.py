"""A loop with accelerate: accumulation, bfloat16, save_state and load_state, an exact resume.

Takes a few seconds on one core; needs `pip install accelerate`:

python examples/accelerate_loop.py
"""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spectrain

ACCUMULATE, EPOCHS, SAVE_AT = 2, 6, (2, 40)  # saved in epoch 2, after 40 of its 64 batches

draw = torch.Generator().manual_seed(0)
x = torch.randn(1024, 32, generator=draw)
data = TensorDataset(x, torch.tanh(x @ torch.randn(32, 16, generator=draw)))


def train(folder: str, seed: int, resume: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Losses after each epoch, and the weights; starts from what is saved in `folder` if asked."""
    torch.manual_seed(seed)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16",
        gradient_accumulation_steps=ACCUMULATE,
        # The order of an epoch follows from its number, so that one can begin in the middle of it.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),
    )
    model = nn.Sequential(
        nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 16)
    )
    spectrain.apply(model, spectrain.SST(rank=8, resample_every=25, warmup=3), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=1e-2))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=192)
    batches = DataLoader(data, batch_size=16, shuffle=True)
    model, optimizer, scheduler, batches = accelerator.prepare(model, optimizer, scheduler, batches)
    spectrain.attach(model, optimizer)  # after prepare, before load_state or after it
    first, skipped = 0, 0
    if resume:
        accelerator.load_state(folder)
        first, skipped = SAVE_AT
    losses = []
    for epoch in range(first, EPOCHS):
        batches.set_epoch(epoch)
        left = accelerator.skip_first_batches(batches, skipped if epoch == first else 0)
        for index, (inputs, targets) in enumerate(left, skipped if epoch == first else 0):
            if not resume and (epoch, index) == SAVE_AT:
                accelerator.save_state(folder)
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        losses.append(loss.item())
        print(f"epoch {epoch}: mean squared error {losses[-1]:.4f}")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    spectrain.merge(model)
    return losses, weights


with tempfile.TemporaryDirectory() as folder:
    losses, weights = train(folder, seed=0, resume=False)
    print("resumed in epoch 2:")
    again, others = train(folder, seed=1, resume=True)
same = all(torch.equal(value, others[name]) for name, value in weights.items())
print("identical, bit for bit" if same and again == losses[SAVE_AT[0] :] else "the runs differ")
raise SystemExit(0 if same else 1)
