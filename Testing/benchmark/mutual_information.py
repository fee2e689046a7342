"""Cost of the local mutual information, forward, and forward and backward: seconds, of the processor too, and memory.

    python Testing/benchmark/mutual_information.py [--size 96 96 72] [--device cpu|cuda] [--runs 3]

Images are noise; the gradient is that of the mean with respect to one of them. Seconds are the least of ``--runs``,
wall time and, in brackets, time of the processor, which other programs disturb less. Every row is a process of its
own. Memory is what it takes at its peak beside the program: on a CPU what the operating system counts, with what the
allocator holds back, on a GPU what PyTorch allocates. Threads are those of PyTorch (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable

import torch

ROWS = {
    "window 7, 8 bins": {},
    "window 7, 8 bins, stride 2": {"stride": 2},
    "window 7, 8 bins, stride 4": {"stride": 4},
    "window 7, 16 bins": {"bins": 16},
    "window 11, 8 bins": {"window": 11},
    "published, one slice": None,
}


def peak_memory(device: str) -> float:
    """Largest memory so far in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def least_seconds(call: Callable[[], object], device: str, runs: int) -> tuple[float, float]:
    """Least wall seconds and least seconds of the processor of ``runs`` calls after a first one."""
    seconds = []
    for _ in range(runs + 1):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - wall, time.process_time() - processor))
    walls, processors = zip(*seconds[1:], strict=True)
    return min(walls), min(processors)


def measure(name: str, size: tuple[int, ...], device: str, runs: int) -> str:
    """A row of the table."""
    from MissingModalitySynthLib.diffusion.mutual_information import PUBLISHED, local_mutual_information

    options = ROWS[name]
    if options is None:
        options, size = PUBLISHED, size[:2]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, *size, generator=generator).to(device) * 2 - 1 for _ in range(2))

    def forward() -> None:
        with torch.no_grad():
            local_mutual_information(a, b, **options)

    def both(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
        variable = b.clone().requires_grad_()
        torch.autograd.grad(local_mutual_information(a, variable, **options).mean(), variable)

    corner = (..., *[slice(8)] * len(size))
    both(a[corner], b[corner])  # libraries are loaded with the first call
    before = peak_memory(device)
    seconds = ["{:.2f} ({:.2f})".format(*least_seconds(call, device, runs)) for call in (forward, both)]
    return f"| {name} | {' | '.join(seconds)} | {peak_memory(device) - before:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(96, 96, 72), help="voxels")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    threads = f", {torch.get_num_threads()} threads" if options.device == "cpu" else ""
    print(f"{'x'.join(map(str, options.size))} voxels, {options.device}{threads}\n")
    print("| setting | forward, s | forward and backward, s | MB |\n| --- | --- | --- | --- |")
    for name in ROWS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (name, tuple(options.size), options.device, options.runs)), flush=True)


if __name__ == "__main__":
    main()
