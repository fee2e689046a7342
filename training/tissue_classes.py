"""The simulator's tissues as the classes that segmenters tell."""

from __future__ import annotations

import torch

from MissingModalitySynthLib.segmentation import CLASSES

from .simulation.tissues import FIRST_LESION, TISSUES

_MEMBERS = {
    "CSF": ("ventricular CSF", "subarachnoid CSF"),
    "grey matter": ("cortex", "cerebellar cortex", "hippocampus and amygdala"),
    "white matter": ("white matter", "cerebellar white matter", "brainstem"),
    "deep grey matter": ("thalamus", "caudate", "putamen", "pallidum"),
}


def classes_of(labels: torch.Tensor) -> torch.Tensor:
    """Tissue classes of the simulator, any shape, to indices of :data:`CLASSES`."""
    table = torch.zeros(len(TISSUES), dtype=torch.long)
    for index, tissue in enumerate(TISSUES):
        for name, members in _MEMBERS.items():
            if tissue.name in members:
                table[index] = CLASSES.index(name)
    table[FIRST_LESION:] = CLASSES.index("lesion")
    return table.to(labels.device)[labels.long()]
