"""The page of an evaluation: every table, and what each number means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from MissingModalitySynthLib.metrics import box_of, psnr, scale_to_target

from . import tables

if TYPE_CHECKING:
    from .run import Findings

_ANCHORS = """\
Anchors, all brought to the target by one gain and one offset: the *affine copy* is the source itself; the *voxel-wise \
oracle* is the best map of single intensities, fitted on the answer; the *tissue mean* has the acquired target's mean \
in every tissue; the *first stage* encodes and decodes the acquired target. Regression, the fourth anchor of the \
paper's field, is a method of the package where it is listed."""

_MASKED = """\
MAE in per cent of the target's range; spectral: mean difference of the power spectra in dB (blur, noise); Dice: the \
segmenter's labels of the synthetic against those of the acquired image."""
_UNCERTAINTY = """\
The standard deviation over samples against the actual error inside the mask: ENCE, the expected normalized \
calibration error, is 0 where calibrated; correlation of |error| and deviation over voxels."""


def markdown(about: Mapping[str, Any], summary: Sequence[tables.Record], findings: Findings) -> str:
    """The page, from the parts of :func:`~.run.evaluate`."""
    methods = tables.methods_of(summary)
    contrasts = list(dict.fromkeys(name for names in about["subjects"].values() for name in names))
    parts = [f"# Evaluation of {about['model']}", _about(about)]
    parts += ["## PSNR in dB / SSIM, crop of the head", tables.main_table(findings.records)]
    parts += [tables.subject_table(findings.records, method) for method in methods]
    parts += [tables.several_sources(findings.records, methods), "### Every pair", tables.pair_table(summary)]
    judged = " In brackets: the judge's own numbers." if any("judge_psnr" in row for row in summary) else ""
    parts += [
        "Mean over subjects. The crop is the mask's box with a margin of 4 voxels, zero outside the mask; the target's "
        "percentiles 0.5 and 99.5 are 0 and 1; SSIM is three-dimensional and Gaussian (sigma 1.5)." + judged,
        _ANCHORS,
        "## Protocol 1, as in the paper's Table 2: PSNR ± SD / NMSE / SSIM",
    ]
    for method in methods:
        parts += [f"### {method}", tables.matrix(summary, method)]
    parts += [
        "On the diagonal: the first stage alone.",
        "### The paper's numbers",
        tables.paper_matrix(contrasts),
        tables.NOT_COMPARABLE,
        "## Protocol 2: inside the mask",
        tables.masked_table(summary),
        _MASKED,
    ]
    if any("lesion_contrast" in row for row in findings.records):
        parts += [
            "## Lesions",
            tables.lesion_table(findings.records, methods),
            tables.LESIONS,
            tables.lesion_failures(findings.records, methods),
        ]
    if findings.calibrations:
        parts += [
            "## Uncertainty",
            tables.calibration_table(findings.calibrations),
            _UNCERTAINTY,
            "![Predicted deviation against error](figures/calibration.png)",
        ]
    if findings.drops:
        parts += [
            "## Robustness: loss in dB of the head crop's PSNR when the source is corrupted",
            tables.robustness_table(findings.drops),
            f"Method: {findings.drops[0]['method']}. {tables.ROBUSTNESS}",
        ]
    parts += ["## Cost", tables.cost_table(findings.records, methods), _cost(about)]
    if findings.pictures:
        shown = [f"- [{name}](figures/{name})" for name in findings.pictures]
        parts += ["## Pictures", "Source, synthetic, acquired, difference.", "\n".join(shown)]
    return "\n\n".join(filter(None, parts)) + "\n"


def printed(findings: Findings, methods: Sequence[str]) -> str:
    """The main tables, as the command prints them."""
    records = findings.records
    parts = [tables.main_table(records), *(tables.subject_table(records, method) for method in methods)]
    parts.append(tables.several_sources(records, methods))
    if any("lesion_contrast" in row for row in records):
        parts += [tables.lesion_table(records, methods), tables.lesion_failures(records, methods)]
    if findings.drops:
        parts.append(tables.robustness_table(findings.drops))
    return "\n\n".join(filter(None, parts))


def mean_curves(calibrations: Sequence[tables.Record]) -> dict[str, dict[str, list[float]]]:
    """By method, the calibration curve's root mean squares over all subjects and pairs."""
    curves = {}
    for method in dict.fromkeys(row["method"] for row in calibrations):
        rows = [row for row in calibrations if row["method"] == method]
        curves[method] = {
            key: np.sqrt(np.mean(np.square([row[key] for row in rows]), axis=0)).tolist()
            for key in ("deviation_bins", "error_bins")
        }
    return curves


def head_psnr(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """``psnr`` of ``metrics.compare``, without its SSIM."""
    box = box_of(mask)
    return psnr(*(array[box] for array in scale_to_target(prediction, target, mask)))


def _about(about: Mapping[str, Any]) -> str:
    lines = [f"- {key}: {about[key]}" for key in ("package", "data", "tissues") if key in about]
    lines += [f"- {name} is predicted by the package {words}" for name, words in about.get("own", {}).items()]
    named = "; ".join(f"{name} ({', '.join(contrasts)})" for name, contrasts in about["subjects"].items())
    lines.append(f"- {len(about['subjects'])} subjects: {named}")
    lines += [f"- skipped: {sentence}" for sentence in about["skipped"].values()]
    lines += [f"- notice: {sentence}" for sentence in about["notices"]]
    return "\n".join(lines)


def _cost(about: Mapping[str, Any]) -> str:
    return (
        f"On {about['device']}, without loading the model; what several targets of one source share is divided among "
        f"them. {about['memory_gigabytes']} GB of memory were held at the end."
    )
