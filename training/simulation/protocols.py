"""Protocols of the contrasts, canonical and wide, and the signals of tissue classes that follow from them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from training.simulation import signals
from training.simulation.randomness import chance, uniform
from training.simulation.tissues import CLASS, LEVELS, TEXTURE_RANGE, TISSUES, Relaxation


def contrast(modality: str, tissue: Relaxation, protocol: dict) -> Tensor:
    """Signals (classes, LEVELS) of a protocol: the sequence, the keyword arguments of its equation, the field (T),
    the dose of contrast agent (1 = standard, T1ce alone) and the share of the fat signal left by fat suppression."""
    settings = {k: v for k, v in protocol.items() if k not in ("sequence", "field", "dose", "fat")}
    t1, fat = tissue.t1, torch.ones(len(TISSUES), 1)
    fat[[CLASS["fat"], CLASS["marrow"]]] = protocol["fat"]
    if modality == "T1ce":
        t1 = signals.enhanced_t1(t1, tissue.uptake * protocol["dose"])
    match protocol["sequence"]:
        case "mprage":
            table = signals.mprage(t1, tissue.t2_star, tissue.pd * fat, **settings)
        case "spgr":
            table = signals.spoiled_gradient_echo(t1, tissue.t2_star, tissue.pd * fat, **settings)
        case "flair":
            table = signals.flair(t1, tissue.t2, tissue.pd * tissue.void * fat, **settings)
        case _:
            table = signals.spin_echo(t1, tissue.t2, tissue.pd * tissue.void * fat, **settings)
    # levels below the mean of fluid in sulci stand for partial volume with cortex
    share = 0.9 * torch.linspace(1, -1, LEVELS).clamp(min=0)
    fluid = CLASS["subarachnoid CSF"]
    table[fluid] += share * (table[CLASS["cortex"], LEVELS // 2] - table[fluid])
    return table


def canonical_protocol(modality: str, generator: Generator) -> dict:
    """The narrow protocol of a target image (3 T); settings vary by a few per cent."""
    jitter = uniform(generator, 0.97, 1.03)
    if modality in ("T1", "T1ce"):
        drawn = {"sequence": "mprage", "tr": 2100.0, "ti": 800 * jitter, "te": 3.0, "flip": 9.0}
        return {"field": 3.0, "dose": 1.0, "fat": 0.75} | drawn
    if modality == "FLAIR":
        return {"field": 3.0, "sequence": "flair", "tr": 9000.0, "ti": 2450 * jitter, "te": 140.0, "fat": 0.4}
    te, tr = (94 * jitter, 5500.0) if modality == "T2" else (12 * jitter, 6000.0)
    return {"field": 3.0, "sequence": "spin echo", "tr": tr, "te": te, "fat": 0.9}


def wide_protocol(modality: str, generator: Generator) -> dict:
    """A protocol as it might have been acquired, at 1.5 or 3 T."""

    def draw(low: float, high: float) -> float:
        return uniform(generator, low, high)

    field = 1.5 if chance(generator, 0.4) else 3.0
    common = {"field": field, "fat": draw(0.05, 0.5) if chance(generator, 0.35) else draw(0.5, 1.2)}
    if modality == "T1ce":
        common["dose"] = draw(0.5, 1.6)
    if modality in ("T1", "T1ce"):
        kind = draw(0, 1)
        if kind < 0.5:
            tr = draw(1800, 2500)
            ti = draw(700, 1150)
            return common | {"sequence": "mprage", "tr": tr, "ti": ti, "te": draw(2, 4.5), "flip": draw(7, 12)}
        if kind < 0.75:
            return common | {"sequence": "spgr", "tr": draw(7, 30), "te": draw(2, 6), "flip": draw(14, 32)}
        return common | {"sequence": "spin echo", "tr": draw(400, 800), "te": draw(8, 18)}
    if modality == "FLAIR":
        tr = draw(6000, 11000)
        null = signals.flair_null(4200 if field == 3.0 else 3600, tr)
        return common | {"sequence": "flair", "tr": tr, "ti": null * draw(0.92, 1.06), "te": draw(75, 140)}
    tr, te = (draw(3000, 8000), draw(75, 125)) if modality == "T2" else (draw(2000, 5500), draw(8, 32))
    return common | {"sequence": "spin echo", "tr": tr, "te": te}


def random_table(physical: Tensor, generator: Generator) -> Tensor:
    """A non-physical contrast: random mean and texture per class, mixed with the physical one; air stays dark."""
    weight = uniform(generator, 0.3, 1.0)
    mean = torch.rand(len(physical), 1, generator=generator)
    slope = 0.05 * torch.randn(len(physical), 1, generator=generator)
    drawn = (mean + slope * torch.linspace(-TEXTURE_RANGE, TEXTURE_RANGE, LEVELS)).clamp(min=0)
    table = (1 - weight) * physical / physical.amax() + weight * drawn
    table[CLASS["air"]] = 0
    return table
