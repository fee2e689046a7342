"""The one training loop of all stages."""

from __future__ import annotations

import copy
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import load_checkpoint, save_checkpoint

Losses = dict[str, torch.Tensor]


def train(
    model: nn.Module,
    compute_losses: Callable[[nn.Module, Any, torch.Generator], Losses],
    batches: Callable[[torch.Generator], Iterator[Any]],
    *,
    folder: Path,
    steps: int,
    configuration: dict[str, Any],
    learning_rate: float = 3e-4,
    warm_up: int = 100,
    weight_decay: float = 1e-2,
    clip_norm: float = 1.0,
    ema_decay: float = 0.999,
    autocast: torch.dtype | None = torch.bfloat16,
    max_minutes: float | None = None,
    checkpoint_minutes: float = 3.0,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> nn.Module:
    """Minimise the sum of the losses with AdamW, warm-up, cosine decay, clipped gradients and averaged weights.

    Args:
        model: trained in place.
        compute_losses: (model, batch, generator) -> named terms, already weighted; their sum is minimised.
        batches: from a generator, an endless iterator of batches.
        folder: receives ``checkpoint.safetensors`` and ``log.jsonl``; an existing checkpoint is resumed.
        steps: length of the schedule.
        configuration: settings stored with the checkpoint; a resumed run must have the same.
        ema_decay: decay of the exponential moving average, shorter in the first steps ((1 + n) / (10 + n)).
        autocast: precision of the forward pass; None is float32.
        max_minutes: stop, with a checkpoint, after this time. SIGTERM does the same.

    Returns:
        The averaged model.

    Raises:
        FloatingPointError: when a loss is not finite; the last checkpoint is kept.
    """
    model.to(device, memory_format=torch.channels_last_3d).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=learning_rate,
        weight_decay=weight_decay,
        betas=(0.9, 0.99),
    )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    path = folder / "checkpoint.safetensors"
    parts: dict[str, Any] = {
        "model": model,
        "average": average,
        "optimizer": optimizer,
        "generator": generator,
        "configuration": configuration,
    }
    done = load_checkpoint(path, **parts) if path.exists() else 0
    folder.mkdir(parents=True, exist_ok=True)
    stop = _StopOnSignal()
    started = saved = logged = time.monotonic()
    totals: dict[str, float] = {}
    count = 0
    iterator = batches(generator)
    with stop, (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        while done < steps and not stop.requested:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(done, steps, warm_up)
            batch = next(iterator)  # outside autocast: the simulator computes in float32
            with torch.autocast(torch.device(device).type, autocast or torch.bfloat16, enabled=autocast is not None):
                losses = compute_losses(model, batch, generator)
            loss = sum(losses.values())
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss is not finite at step {done}: {_readable(losses)}.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            done += 1
            _update_average(average, model, min(ema_decay, (1 + done) / (10 + done)))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item()
            count += 1
            now = time.monotonic()
            if now - logged > 20 or done == steps:
                entry = {"step": done, "minutes": (now - started) / 60} | {k: v / count for k, v in totals.items()}
                log.write(json.dumps(entry) + "\n")
                log.flush()
                report(_readable(entry))
                totals, count, logged = {}, 0, now
            stop.requested |= max_minutes is not None and now - started > 60 * max_minutes
            if now - saved > 60 * checkpoint_minutes:
                save_checkpoint(path, step=done, **parts)
                saved = now
        save_checkpoint(path, step=done, **parts)
    return average.eval()


def _schedule(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the learning rate."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(b, 1 - decay)
        else:
            a.copy_(b)


def _readable(entry: dict[str, Any]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in entry.items())


class _StopOnSignal:
    """Turns SIGTERM into a request to stop after the current step."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, *_: object) -> None:
        self.requested = True
