"""accelerate and Lightning: an interrupted run equals an unbroken one."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from cases import RANK, every_default
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from toys import make_net, same

import spectrain
from spectrain.surgery import parametrized

STEPS = 8
SST = spectrain.SST(RANK, resample_every=3)


# --- accelerate ----------------------------------------------------------------------------------


def rows(count):
    """Inputs (count, 3, 6) and targets (count, 3, 5)."""
    draw = torch.Generator().manual_seed(3)
    return TensorDataset(
        torch.randn(count, 3, 6, generator=draw), torch.randn(count, 3, 5, generator=draw)
    )


@pytest.fixture
def _fresh_accelerate():
    """accelerate keeps its precision for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def accelerated(method, folder, *, seed=0, precision="no", saves=(), resume=0):
    """Two epochs of six steps, each of two micro-batches; saves after steps, or begins after one."""
    accelerator = Accelerator(
        cpu=True,
        mixed_precision=precision,
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),
    )
    net = spectrain.apply(make_net(seed), method, report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    batches = DataLoader(rows(24), batch_size=2, shuffle=True)
    net, optimizer, scheduler, batches = accelerator.prepare(net, optimizer, scheduler, batches)
    spectrain.attach(net, optimizer)
    if resume:
        accelerator.load_state(folder / str(resume))
    losses, done = [], resume
    for epoch in range(resume // 6, 2):
        batches.set_epoch(epoch)
        skipped = 2 * (done - 6 * epoch)
        for x, y in accelerator.skip_first_batches(batches, skipped):
            with accelerator.accumulate(net):
                loss = F.mse_loss(net(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            done += accelerator.sync_gradients
            if accelerator.sync_gradients and done in saves:
                accelerator.save_state(folder / str(done))
    assert {int(layer.clock) for _, layer in parametrized(net)} == {12}
    return losses[-2 * (12 - max([resume, *saves])) :], net.state_dict(), optimizer.state_dict()


@every_default
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.usefixtures("_fresh_accelerate")
def test_accelerate_resumes_exactly(method, precision, tmp_path, only_safe_loading):
    steps = (2, 3, 4)
    unbroken = accelerated(method, tmp_path, precision=precision, saves=steps)
    for step in steps:
        resumed = accelerated(method, tmp_path, seed=step, precision=precision, resume=step)
        assert same(resumed[1:], unbroken[1:]), step
    assert resumed[0] == unbroken[0]
    assert all((tmp_path / str(step) / "model.safetensors").is_file() for step in steps)


@every_default
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "foreach"])
@pytest.mark.usefixtures("_fresh_accelerate")
def test_a_step_that_accelerate_skips_is_none(method, fused):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")  # of itself, it scales on a GPU alone
    net = spectrain.apply(make_net(), method, report=None)
    kind = {"fused": True} if fused else {"foreach": True}
    net, optimizer = accelerator.prepare(
        net, torch.optim.AdamW(spectrain.param_groups(net, 0.01), **kind)
    )
    spectrain.attach(net, optimizer)
    x, y = rows(4)[:]
    for factor, clock in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        before = copy.deepcopy([net.state_dict(), optimizer.state_dict()])
        accelerator.backward(F.mse_loss(net(x), y) * factor)
        optimizer.step()
        optimizer.zero_grad()
        skipped = factor > 1
        assert same([net.state_dict(), optimizer.state_dict()], before) is skipped
        assert {int(layer.clock) for _, layer in parametrized(net)} == {clock}


# --- Lightning -----------------------------------------------------------------------------------


def lightning_run(method, folder, *, seed=0, epochs=4, resume=False, per_epoch=3):
    """`per_epoch` steps of two micro-batches in each of the epochs."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = spectrain.apply(make_net(seed), method, report=None)
            self.losses = []

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(spectrain.param_groups(self.net, 0.01))
            spectrain.attach(self.net, optimizer)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def training_step(self, batch, index):
            loss = F.mse_loss(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

    module = Module()
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
    batches = DataLoader(rows(4 * per_epoch), batch_size=2)
    saved = str(folder / "saved.ckpt")
    trainer.fit(module, batches, ckpt_path=saved if resume else None, weights_only=True)
    assert {int(layer.clock) for _, layer in parametrized(module)} == {per_epoch * epochs}
    if epochs < 4:
        trainer.save_checkpoint(saved)
    return module.losses, module.state_dict(), trainer.optimizers[0].state_dict()


@every_default
@pytest.mark.parametrize("per_epoch", [2, 3])
@pytest.mark.filterwarnings("ignore:.*num_workers")
def test_lightning_resumes_exactly(method, per_epoch, tmp_path, only_safe_loading):
    pytest.importorskip("pytorch_lightning")
    unbroken = lightning_run(method, tmp_path, per_epoch=per_epoch)
    first = lightning_run(method, tmp_path, per_epoch=per_epoch, epochs=2)
    resumed = lightning_run(method, tmp_path, per_epoch=per_epoch, seed=7, resume=True)
    assert first[0] + resumed[0] == unbroken[0]
    assert same(resumed[1:], unbroken[1:])
