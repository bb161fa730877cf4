"""What a network makes of held-out images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.distributed import Processes
from spectrain.tasks.batch import Examples

AT_ONCE = 256  # images


@torch.no_grad()
def logits_of(
    model: nn.Module,
    pixels: Tensor,  # (N, C, H, W), uint8
    dtype: torch.dtype = torch.float32,  # of autocast; float32: none
) -> Tensor:  # (N, classes), float32, on the CPU
    """Without dropout; the model is in the mode it was in afterwards."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = [model(part.to(device)).float().cpu() for part in torch.split(pixels, AT_ONCE)]
    finally:
        model.train(training)
    return torch.cat(found)


def measured(
    model: nn.Module, examples: Examples, dtype: torch.dtype, processes: Processes | None
) -> dict[str, float]:
    """Over all examples: the share of right answers, "accuracy", and the mean cross-entropy, "loss".

    With `processes` each of them takes a share, the last ones padded with the first image, so that
    all call the model equally often, as a sharded one asks for.
    """
    rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
    rows = torch.arange(rank, len(examples.targets), size)
    padded = F.pad(rows, (0, -(-len(examples.targets) // size) - len(rows)))
    logits = logits_of(model, examples.inputs[padded], dtype)[: len(rows)]
    labels = examples.targets[rows]
    right = (logits.argmax(1) == labels).sum()
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    sums = torch.stack((right.double(), loss, torch.tensor(float(len(labels))).double()))
    if processes is not None:
        processes.mean(sums)
    accuracy, mean = (sums[:2] / sums[2]).tolist()
    return {"accuracy": accuracy, "loss": mean}
