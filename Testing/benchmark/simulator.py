"""Speed of the simulator of training: heads and images per second, over pathology, artefacts and all.

    python Testing/benchmark/simulator.py [--size 128] [--device cpu|cuda] [--heads 10] [--sources T1] [--profile]

Each head is a cube of ``--size`` mm in all five canonical contrasts, with one acquired source or as many as are named.
Threads are those of PyTorch (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import argparse
import time

import torch

from training.simulation import MODALITIES, mni_anatomy, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--sources", nargs="*", choices=MODALITIES, default=["T1"])
    parser.add_argument("--profile", action="store_true", help="also print the costliest operators of three heads")
    options = parser.parse_args()
    anatomy = mni_anatomy()
    generator = torch.Generator().manual_seed(0)

    def head() -> None:
        simulate(
            anatomy,
            shape=(options.size,) * 3,
            generator=generator,
            device=options.device,
            sources=options.sources,
        )
        if options.device == "cuda":
            torch.cuda.synchronize()

    head()  # warm-up
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(options.heads):
        head()
    wall = (time.perf_counter() - wall) / options.heads
    processor = (time.process_time() - processor) / options.heads
    images = len(MODALITIES) + len(options.sources)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{options.size} cubed, {len(MODALITIES)} targets and {len(options.sources)} sources, {device}")
    print(f"{1 / wall:.2f} heads/s, {images / wall:.1f} images/s ({wall:.2f} s a head, {processor:.2f} s of processor)")
    if options.profile:
        with torch.profiler.profile() as profile:
            for _ in range(3):
                head()
        print(profile.key_averages().table(sort_by=f"self_{options.device}_time_total", row_limit=15))


if __name__ == "__main__":
    main()
