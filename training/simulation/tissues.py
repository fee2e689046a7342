"""Tissue classes with their relaxation times, proton density, texture and contrast uptake.

Values are round figures between the published ones: Stanisz et al. 2005 (1.5 and 3 T), BrainWeb (1.5 T), Wansapura et
al. 1999 (3 T), Bottomley et al. 1984 for the field dependence of T1; pathology has wide priors as published values are
scattered. T2 is the effective one of turbo spin echo trains (fat is bright).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

LEVELS = 32  # texture (or severity) steps within a class
T2_TEXTURE = 1.5  # T2 varies more than T1 within a tissue: T2 and FLAIR images of white matter are less even than T1
TEXTURE_RANGE = 4.0  # the outermost levels, in standard deviations of the texture field


class Tissue(NamedTuple):
    """T1 (ms, at 1.5 and 3 T), T2 and T2* (ms), PD (water = 1), texture (relative SD of T1 within the tissue), spread
    (relative SD between subjects), uptake (mM of gadolinium), void (signal left after flow in spin-echo sequences)."""

    name: str
    t1_15: float
    t1_30: float
    t2: float
    t2_star: float
    pd: float
    texture: float = 0.05
    spread: float = 0.05
    uptake: float = 0.0
    void: float = 1.0


TISSUES = (
    Tissue("air", 1000, 1000, 1, 1, 0.0),
    Tissue("white matter", 600, 850, 73, 50, 0.70, 0.034, 0.02, 0.004),
    Tissue("cortex", 1000, 1320, 88, 55, 0.82, 0.045, 0.02, 0.01),
    Tissue("cerebellar white matter", 650, 900, 76, 48, 0.71, 0.04, 0.02, 0.004),
    Tissue("cerebellar cortex", 980, 1290, 87, 52, 0.82, 0.05, 0.02, 0.01),
    Tissue("thalamus", 740, 1010, 75, 48, 0.75, 0.04, 0.02, 0.008),
    Tissue("caudate", 900, 1210, 77, 48, 0.79, 0.035, 0.02, 0.008),
    Tissue("putamen", 830, 1120, 73, 44, 0.78, 0.035, 0.025, 0.008),
    Tissue("pallidum", 700, 940, 64, 32, 0.73, 0.04, 0.04, 0.008),
    Tissue("hippocampus and amygdala", 1020, 1330, 94, 52, 0.83, 0.045, 0.02, 0.01),
    Tissue("brainstem", 690, 960, 82, 46, 0.73, 0.05, 0.02, 0.006),
    Tissue("ventricular CSF", 3600, 4200, 1600, 900, 1.0, 0.01, 0.03, 0.003),
    Tissue("subarachnoid CSF", 3500, 4100, 1400, 700, 1.0, 0.03, 0.03, 0.003, 0.85),
    Tissue("choroid plexus", 1400, 1800, 130, 60, 0.85, 0.10, 0.10, 0.30),
    Tissue("vessel", 1500, 1900, 140, 45, 0.70, 0.10, 0.10, 0.35, 0.35),
    Tissue("dura", 750, 1000, 45, 20, 0.55, 0.10, 0.10, 0.20),
    Tissue("fat", 300, 370, 95, 45, 0.62, 0.06, 0.06),
    Tissue("muscle", 950, 1250, 40, 26, 0.78, 0.10, 0.06, 0.06),
    Tissue("skin", 700, 950, 45, 25, 0.70, 0.10, 0.08, 0.08),
    Tissue("marrow", 390, 460, 70, 18, 0.55, 0.12, 0.12, 0.03),
    Tissue("cortical bone", 600, 800, 6, 1.5, 0.12, 0.15, 0.15),
    Tissue("eye", 3400, 4000, 900, 400, 0.98, 0.01, 0.05),
    Tissue("mucosa", 1000, 1300, 95, 35, 0.85, 0.12, 0.10, 0.30),
    Tissue("nerve and cord", 700, 970, 82, 45, 0.74, 0.06, 0.05, 0.02),
    Tissue("lesion", 1150, 1500, 190, 110, 0.86, 0.0, 0.15, 0.01),
    Tissue("oedema", 1150, 1550, 170, 100, 0.87, 0.0, 0.15, 0.01),
    Tissue("cavity", 2100, 2700, 420, 200, 0.95, 0.10, 0.20, 0.01),
    Tissue("tumour", 1250, 1650, 170, 90, 0.88, 0.12, 0.15, 0.02),
    Tissue("enhancing tumour", 1150, 1500, 115, 60, 0.85, 0.12, 0.15, 0.22),
    Tissue("infarct", 1300, 1700, 200, 100, 0.89, 0.12, 0.20, 0.02),
    Tissue("enhancing lesion", 1150, 1500, 190, 110, 0.86, 0.08, 0.15, 0.15),
)
CLASS = {tissue.name: index for index, tissue in enumerate(TISSUES)}
FIRST_LESION = CLASS["lesion"]
SEVERITY = {CLASS["lesion"]: CLASS["white matter"], CLASS["oedema"]: CLASS["white matter"]}
BRAIN = tuple(range(CLASS["white matter"], CLASS["subarachnoid CSF"]))  # parenchyma and ventricles


class Relaxation(NamedTuple):
    """Parameters of one subject at one field strength; every tensor is (classes, LEVELS)."""

    t1: Tensor
    t2: Tensor
    t2_star: Tensor
    pd: Tensor
    uptake: Tensor
    void: Tensor


def draw_subject(generator: Generator) -> dict[float, Relaxation]:
    """Draw a subject's tissue parameters: the same relative deviations at each field strength {1.5, 3.0} T.

    Level l of a class stands for the texture value z in [-TEXTURE_RANGE, TEXTURE_RANGE] (T1 scaled by exp(texture z),
    T2 by exp(T2_TEXTURE texture z)); of "lesion" and "oedema" for the severity between white matter (first level) and
    full (last).
    """
    columns = torch.tensor([tissue[1:] for tissue in TISSUES], dtype=torch.float32).T[:, :, None]
    t1_15, t1_30, t2, t2_star, pd, texture, spread, uptake, void = columns

    def deviation(scale: float) -> Tensor:
        return torch.exp(scale * spread * torch.randn(spread.shape, generator=generator))

    d_t1, d_t2, d_pd, d_uptake, d_void = (deviation(scale) for scale in (1, 1, 0.3, 4, 4))
    z = torch.linspace(-TEXTURE_RANGE, TEXTURE_RANGE, LEVELS)
    vary = torch.exp(texture * z)
    severity = torch.linspace(0, 1, LEVELS)

    def finish(values: Tensor) -> Tensor:
        values = values.expand(-1, LEVELS).clone()
        for lesion, host in SEVERITY.items():
            values[lesion] = values[host].median() ** (1 - severity) * values[lesion] ** severity
        return values

    return {
        field: Relaxation(
            finish(t1 * d_t1 * vary),
            finish(t2 * factor * d_t2 * vary**T2_TEXTURE),
            finish(t2_star * (4.5 - field) / 1.5 * d_t2 * vary**T2_TEXTURE),
            finish(pd * d_pd * vary**0.3).clamp(max=1.1),
            finish((uptake * d_uptake).clamp(min=1e-4)),
            finish(void**d_void),  # varies where there is flow
        )
        for field, t1, factor in ((1.5, t1_15, 1.06), (3.0, t1_30, 1.0))
    }
