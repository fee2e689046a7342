"""Simulated subjects on disk: a data set to try the readers on, and a sheet to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import write_volume

from .loop import generator_at
from .simulation.anatomy import Anatomy
from .simulation.preview import preview
from .simulation.simulator import simulate

# RAS axes in ITK's LPS world
_DIRECTION = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


def write_subjects(
    anatomies: Sequence[Anatomy],
    output: Path,
    *,
    cases: int,
    shape: tuple[int, int, int],
    modalities: Sequence[str],
    seed: int = 0,
    **options,
) -> None:
    """Write ``output/acquired`` and ``output/clean``, one folder a subject, and ``output/preview.png``.

    "clean" has the images of the canonical protocols, "acquired" those of wide ranges with artefacts, under
    ``simulated-0001/simulated-0001_T1.nii.gz`` and so on; tissue classes are in ``_tissues``, lesions in
    ``_segmentation``. ``output/protocols.json`` says what was drawn.

    Args:
        shape: voxels of 1 mm.
        **options: of :func:`~.simulation.simulator.simulate`.
    """
    protocols = {}
    for number in range(1, cases + 1):
        case = simulate(
            anatomies[number % len(anatomies)],
            shape=shape,
            generator=generator_at(seed, number),
            sources=modalities,
            targets=modalities,
            **options,
        )
        name = f"simulated-{number:04d}"
        protocols[name] = case.protocol
        maps = {"tissues": case.labels, "segmentation": case.lesion_mask}
        for kind, images in (("acquired", case.sources), ("clean", case.targets)):
            folder = output / kind / name
            folder.mkdir(parents=True, exist_ok=True)
            for what, image in {**images, **maps}.items():
                array = image.cpu().numpy().astype(np.float32)
                geometry = Geometry(array.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), _DIRECTION)
                write_volume(Volume(array, geometry, name), folder / f"{name}_{what}.nii.gz")
    (output / "protocols.json").write_text(json.dumps(protocols, indent=2) + "\n", encoding="utf-8")
    preview(list(anatomies), output / "preview.png", cases=min(cases, 4), seed=seed, size=min(shape), **options)
