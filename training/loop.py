"""The one training loop of all stages."""

from __future__ import annotations

import copy
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from MissingModalitySynthLib.device import channels_last

from . import distributed
from .checkpoint import load_checkpoint, save_checkpoint
from .logbook import Logbook, memory_gigabytes, readable

Losses = dict[str, torch.Tensor]
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def generator_at(*key: int) -> torch.Generator:
    """A generator that is a function of a few numbers >= 0 alone, such as a seed and a position in a run."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def train(
    model: nn.Module,
    compute_losses: Callable[[nn.Module, Any, torch.Generator], Losses],
    examples: Callable[[int], Any],
    *,
    folder: Path,
    steps: int,
    configuration: dict[str, Any],
    frozen: Sequence[nn.Module] = (),
    show: Callable[[nn.Module, Any], dict[str, torch.Tensor]] | None = None,
    learning_rate: float = 3e-4,
    warm_up: int = 100,
    weight_decay: float = 1e-2,
    clip_norm: float = 1.0,
    ema_decay: float = 0.999,
    accumulation: int = 1,
    precision: str = "bfloat16",
    checkpointed: tuple[type[nn.Module], ...] = (),
    max_minutes: float | None = None,
    checkpoint_minutes: float = 3.0,
    log_steps: int = 20,
    image_steps: int = 500,
    tensorboard: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> nn.Module:
    """Minimise the sum of the losses with AdamW, warm-up, cosine decay, clipped gradients and averaged weights.

    A step takes ``accumulation`` examples in each process of :mod:`~training.distributed`. They are numbered through
    the run, and all that is random about one is a function of the seed and its number. A run that was interrupted and
    resumed therefore equals one that was not, and two processes equal one that accumulates twice as much.

    Args:
        model: trained in place.
        compute_losses: (model, example, generator) -> named terms, already weighted; the sum of those that require a
            gradient is minimised, the others are only logged.
        examples: number of an example -> the example; its ``str`` names it in errors.
        folder: receives ``checkpoint.safetensors``, ``log.jsonl`` and ``tensorboard``; a checkpoint found is resumed.
        steps: length of the schedule.
        configuration: settings stored with the checkpoint; a resumed run must have the same.
        frozen: parts of the model that stay in evaluation mode.
        show: (averaged model, example) -> named images (1, 1, X, Y, Z) in [-1, 1] for TensorBoard.
        ema_decay: decay of the exponential moving average, shorter in the first steps ((1 + n) / (10 + n)).
        precision: of the forward pass, a key of :data:`PRECISIONS`.
        checkpointed: classes of modules whose activations are computed again in the backward pass instead of kept.
        max_minutes: stop, with a checkpoint, after this time. SIGTERM does the same.
        log_steps, image_steps: an entry is the mean over the steps since the last one.

    Returns:
        The averaged model.

    Raises:
        FloatingPointError: a loss or gradient is not finite; the last checkpoint is kept.
        InputError: the checkpoint belongs to another configuration; OutputError: it cannot be written.
    """
    rank, world = distributed.rank(), distributed.world()
    channels_last(model.to(device)).train()
    distributed.copy_from_first([*model.parameters(), *model.buffers()])
    for module in frozen:
        module.eval()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    recompute(model, checkpointed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # a parameter that no example uses has a gradient of 0, in one process as in many
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    path = folder / "checkpoint.safetensors"
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}
    state: dict[str, Any] = {"step": 0, "minutes": 0.0, "sums": {}, "configuration": configuration}
    if path.exists():
        state = load_checkpoint(path, configuration=configuration, **parts)
    done, earlier, sums = state["step"], state["minutes"], state["sums"]
    folder.mkdir(parents=True, exist_ok=True)
    autocast = PRECISIONS[precision]
    started = saved = logged = time.monotonic()
    counted = 0
    stop = _StopOnSignal()

    def save() -> None:
        state.update(step=done, minutes=earlier + (time.monotonic() - started) / 60, sums=sums)
        if rank == 0:
            save_checkpoint(path, state=state, **parts)

    book = Logbook(folder if rank == 0 else None, done=done, steps=steps, tensorboard=tensorboard)
    with stop, book:
        while done < steps and not stop.requested:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(done, steps, warm_up)
            optimizer.zero_grad(set_to_none=False)
            batch = []
            for part in range(accumulation):
                number = (done * world + rank) * accumulation + part
                example = examples(number)  # outside autocast: the simulator computes in float32
                batch.append(str(example))
                torch.manual_seed(generator_at(seed, number, 1).initial_seed())
                with torch.autocast(
                    torch.device(device).type, autocast or torch.bfloat16, enabled=autocast is not None
                ):
                    terms = compute_losses(model, example, generator_at(seed, number, 2))
                loss = sum(term for term in terms.values() if term.requires_grad) / accumulation
                values = {name: term.item() for name, term in terms.items()}
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"The loss is not finite at step {done} ({readable(values)}): {example}.")
                loss.backward()
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value / accumulation
            distributed.average_gradients(trained)
            norm = nn.utils.clip_grad_norm_(trained, clip_norm)
            if not torch.isfinite(norm):
                names = "; ".join(batch)
                raise FloatingPointError(f"The gradient is not finite at step {done} ({readable(values)}): {names}.")
            optimizer.step()
            _update_average(average, model, min(ema_decay, (2 + done) / (11 + done)))
            done += 1
            counted += 1
            book.advance()
            now = time.monotonic()
            if done % log_steps == 0 or done == steps:
                since = done % log_steps or log_steps
                entry = {"step": done, "minutes": earlier + (now - started) / 60}
                entry |= zip(sums, distributed.mean([v / since for v in sums.values()], device), strict=True)
                entry |= {"learning_rate": optimizer.param_groups[0]["lr"], "gradient_norm": norm.item()}
                entry |= {"steps_per_second": counted / (now - logged), "memory_gb": memory_gigabytes(device)}
                book.write(entry)
                sums, counted, logged = {}, 0, now
            if show is not None and tensorboard and rank == 0 and (done % image_steps == 0 or done == steps):
                with torch.no_grad():
                    book.show(show(average, example), done)
            stop.requested |= max_minutes is not None and now - started > 60 * max_minutes
            stop.requested = distributed.mean([stop.requested], device)[0] > 0  # all stop after the same step
            if now - saved > 60 * checkpoint_minutes and done < steps and not stop.requested:
                save()
                saved = now
        save()
    if done < steps and rank == 0:
        print(f"Stopped at step {done} of {steps}; the same command goes on from '{path}'.", file=sys.stderr)
    distributed.wait_for_all()
    return average


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


def recompute(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Gradient checkpointing (Chen et al. 2016): modules of these classes keep their inputs alone."""
    for module in model.modules():
        if isinstance(module, kinds):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


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
