"""Run directories with known losses, for tests of comparisons and reports."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from spectrain.runs.compare import Arm, Plan, Trial

RATES = (1e-3, 2e-3, 4e-3)
TITLES = {"full": "full rank", "sst": "SST", "relora": "ReLoRA*", "lora": "LoRA"}
BEST_RATE = dict.fromkeys(TITLES, 2e-3)
FLOOR = {"full": 3.0, "sst": 3.1, "relora": 3.4, "lora": 3.6}  # loss at the best rate


def arm(key: str, rates: tuple[float, ...] = RATES, variations: tuple[str, ...] = ()) -> Arm:
    return Arm(key, TITLES[key], variations, f"{key} every 32 steps", f"{key} every 200", rates)


def plan(
    keys: tuple[str, ...] = ("full", "sst", "relora", "lora"),
    ordinary_rates: tuple[float | None, ...] = (None,),
    report_seeds: tuple[int, ...] = (1, 2, 3),
    max_extensions: int = 1,
    **arms: Arm,
) -> Plan:
    """A plan; ``arms`` replaces an arm of that key."""
    chosen = tuple(arms.get(key) or arm(key) for key in keys)
    return Plan(chosen, ordinary_rates, 0, report_seeds, max_extensions)


class FakeTraining:
    """Stands for training: the loss is a parabola in log(lr), plus a little for the seed."""

    def __init__(
        self,
        best_rate: dict[str, float] | None = None,
        floor: dict[str, float] | None = None,
        diverges: Callable[[Trial], bool] = lambda trial: False,
        fingerprint: Callable[[Trial], str] = lambda trial: "abc123",
        stop_after: int | None = None,
    ) -> None:
        self.best_rate = BEST_RATE | (best_rate or {})
        self.floor = FLOOR | (floor or {})
        self.diverges = diverges
        self.fingerprint = fingerprint
        self.stop_after = stop_after
        self.calls: list[Trial] = []

    def loss(self, trial: Trial) -> float:
        wobble = 0.004 * ((7 * trial.seed + len(trial.arm)) % 5 - 2)
        return (
            self.floor[trial.arm]
            + 0.1 * math.log2(trial.lr / self.best_rate[trial.arm]) ** 2
            + (0.05 * math.log2(trial.lr_ordinary / 1e-2) ** 2 if trial.lr_ordinary else 0.0)
            + wobble
        )

    def __call__(self, trial: Trial, directory: Path) -> dict:
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(trial)
        return write_run(
            directory,
            trial.arm,
            trial.lr,
            trial.lr_ordinary or trial.lr,
            trial.seed,
            final=self.loss(trial),
            failed="NaN loss at step 12" if self.diverges(trial) else None,
            fingerprint=self.fingerprint(trial),
        )


def write_run(
    directory: Path,
    method: str,
    lr: float,
    lr_ordinary: float,
    seed: int,
    *,
    final: float,
    failed: str | None = None,
    fingerprint: str = "abc123",
    finished: bool = True,
    steps: int = 400,
) -> dict:
    """Write the files of a run directory; its result."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "format": 1,
        "task": "lm",
        "options": {"model": "llama-9m", "steps": steps},
        "method": {"name": method, "rank": 32},
        "corpus": {"name": "standard library", "fingerprint": fingerprint},
        "environment": {"python": "3.11", "torch": "2.13"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    speed = {"full": 0.09, "sst": 0.1}.get(method, 0.08)
    metrics, timing = [], []
    for step in range(10, steps + 1, 10):
        noise = 0.05 * math.sin(step * (seed + 1) * 1.7)
        loss = final + 4 * math.exp(-step / 60) + noise
        metrics.append({"step": step, "loss": loss, "lr": lr * (1 - step / steps)})
        if step % 100 == 0:
            metrics.append({"step": step, "validation_loss": loss - noise})
        timing.append({"step": step, "seconds": step * speed, "tokens_per_second": 9000.0})
    for name, rows in {"metrics": metrics, "timing": timing}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text)
    rank = 64 if method == "full" else 32
    initial = [2 * (1 - i / 80) for i in range(64)]
    spectrum = [
        value + (3 * math.exp(-i / 10) if i < rank else 0) for i, value in enumerate(initial)
    ]
    values = {"initial": initial} | ({"final": spectrum} if finished and not failed else {})
    (directory / "spectra.json").write_text(json.dumps({"layers.0.mlp.up_proj": values}))
    if not finished:
        return {}
    share = 1.0 if method == "full" else 0.3
    result = {
        "steps": steps,
        "tokens": steps * 1024,
        "validation_loss": None if failed else final,
        "test_loss": None if failed else final + 0.02,
        "seconds": steps * speed,
        "seconds_per_step": speed,
        "bytes": {
            "weights": 30 * 2**20,
            "gradients": int(30 * 2**20 * share),
            "optimizer": int(60 * 2**20 * share),
            "device_peak": None,
        },
        "trainable_parameters": int(9_000_000 * share),
        "frozen_parameters": int(9_000_000 * (1 - share)),
        "method": {"name": method, "rank": 32},
        "lr": lr,
        "lr_ordinary": lr_ordinary,
        "seed": seed,
        "corpus_fingerprint": fingerprint,
        "failed": failed,
    }
    (directory / "result.json").write_text(json.dumps(result))
    return result
