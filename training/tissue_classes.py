"""The simulator's tissues as the classes that segmenters tell, and those of a scan."""

from __future__ import annotations

import numpy as np
import torch
from skimage.filters import threshold_multiotsu

from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.shading import estimate_field
from MissingModalitySynthLib.volume import Volume

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


def tissues_of_t1(t1: Volume, mask: np.ndarray) -> np.ndarray:
    """CSF, grey and white matter (1, 2, 3) of a skull-stripped T1, 0 outside.

    By two thresholds (Otsu, IEEE TSMC 1979) after a correction of the bias field (N4, Tustison et al., IEEE TMI 2010).
    Rough, and good enough to know tissue means and errors by tissue.
    """
    low, high = np.percentile(t1.array[mask], [1, 99])
    if high <= low:
        return 2 * mask.astype(int)
    image = np.clip((t1.array - low) / (high - low), 0, 1) + 0.05  # N4 takes logarithms
    flat = image / estimate_field(image, mask, t1.geometry.spacing)
    return (np.digitize(flat, threshold_multiotsu(flat[mask], classes=3)) + 1) * mask
