"""Write a sheet of simulated images: `python -m training.simulation.preview --anatomy FOLDER --out sheet.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.simulation.anatomy import Anatomy, mni_anatomy, synthseg_anatomy
from training.simulation.simulator import MODALITIES, simulate


def preview(
    anatomies: list[Anatomy], out: str | Path, *, cases: int = 4, seed: int = 0, size: int = 176, **options
) -> Path:
    """Draw targets (first five columns) and sources (last five) of `cases` simulated heads; returns the PNG's path.

    options: keyword arguments of `simulate`.
    """
    from matplotlib.figure import Figure

    generator = torch.Generator().manual_seed(seed)
    figure = Figure(figsize=(2.2 * 10, 2.6 * cases), facecolor="black")
    axes = figure.subplots(cases, 10, squeeze=False)
    for row in range(cases):
        anatomy = anatomies[row % len(anatomies)]
        result = simulate(anatomy, shape=(size, size, size), generator=generator, **options)
        where = result.lesion_mask.flatten(0, 1).sum(0)
        level = int(where.argmax()) if where.any() else size // 2
        for column, kind in enumerate(("targets", "sources")):
            images = getattr(result, kind)
            for number, modality in enumerate(MODALITIES):
                axis = axes[row, 5 * column + number]
                image = images[modality]
                low, high = torch.quantile(image.flatten()[::17], torch.tensor([0.005, 0.995]))
                axis.imshow(image[:, :, level].T.flip(0).numpy(), cmap="gray", vmin=low, vmax=high)
                name = result.protocol[kind][modality]["sequence"]
                axis.set_title(f"{modality} {name}", color="white", fontsize=8, pad=2)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 0.97, 0.01, 0.05)
    figure.savefig(out, dpi=100, facecolor="black")
    return Path(out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anatomy", type=Path, help="folder of label maps (*.nii.gz); default: the MNI152 average")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    files = sorted(options.anatomy.glob("*.nii*"))[: options.cases] if options.anatomy else []
    anatomies = [synthseg_anatomy(path) for path in files] or [mni_anatomy()]
    print(preview(anatomies, options.out, cases=options.cases, seed=options.seed))


if __name__ == "__main__":
    main()
