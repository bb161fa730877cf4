"""A LightningModule: attach where the optimizer is made; stop, and resume from Lightning's checkpoint.

Takes about ten seconds on one core; needs `pip install pytorch-lightning`:

python examples/lightning_module.py
"""

import logging
import tempfile
import warnings

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spectrain

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")  # about workers for the data

draw = torch.Generator().manual_seed(0)
x = torch.randn(1024, 32, generator=draw)
data = TensorDataset(x, torch.tanh(x @ torch.randn(32, 8, generator=draw)))


class Regression(pl.LightningModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8)
        )
        spectrain.apply(self.net, spectrain.SST(rank=8, resample_every=25, warmup=3), report=None)
        self.losses: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(spectrain.param_groups(self.net, lr=1e-2))
        spectrain.attach(self.net, optimizer)
        return optimizer

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def on_train_batch_end(
        self, outputs: dict[str, Tensor], batch: list[Tensor], index: int
    ) -> None:
        if self.trainer.is_last_batch:
            self.losses.append(outputs["loss"].item())


def fit(module: Regression, epochs: int, checkpoint: str | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=16), ckpt_path=checkpoint, weights_only=True)
    return trainer


with tempfile.TemporaryDirectory() as folder:
    unbroken = Regression(seed=0)
    fit(unbroken, epochs=6)
    first = Regression(seed=0)
    fit(first, epochs=3).save_checkpoint(f"{folder}/third.ckpt")
    resumed = Regression(seed=1)  # another start: all that counts comes from the file
    fit(resumed, epochs=6, checkpoint=f"{folder}/third.ckpt")
print("mean squared error after each epoch:", *(f"{loss:.4f}" for loss in unbroken.losses))
print("after the third, resumed:           ", *(f"{loss:.4f}" for loss in resumed.losses))
pairs = zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True)
same = all(torch.equal(a, b) for a, b in pairs)
print("identical, bit for bit" if same else "the runs differ")

spectrain.merge(resumed)
print(f"merged: {', '.join(type(layer).__name__ for layer in resumed.net)} again")
raise SystemExit(0 if same else 1)
