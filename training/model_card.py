"""The model card of a package: what it was trained on, what it was measured to do, and what it cannot do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.modality import MODALITIES

from .evaluation import tables
from .simulation.pathology import PATHOLOGY
from .simulation.protocols import canonical_protocol, wide_protocol
from .simulation.simulator import SAME_SESSION, SHIFT, TURN

INTENDED_USE = (
    "Research, and visual comparison by professionals who also see the acquired images. Not a medical device, not for "
    "diagnosis: a synthetic image shows what the model expects, not what was measured."
)
LIMITS = """\
- Pathology is not to be trusted: it may be fainter than in a scan, vanish, or appear where there is none, above all
  such as the training did not know.
- Trained for adult brains, at 1 mm. Other ages, body parts, implants and strong artefacts are outside of what it knows.
- T1ce: uptake of contrast agent cannot be known from images without it. What looks like enhancement is a guess."""
SIMULATION_LIMITS = """\
- Fat, bone and face are drawn roughly by the simulator; only the brain was modelled with care.
- Its pathology is white-matter lesions, gliomas with oedema and infarcts of simple shapes. Haemorrhage, calcification,
  abscesses, malformations and what surgery leaves are not among it. Oedema and tumours of a T1 are faint in the FLAIR
  that is made of it, even those that it shows well; large oedema of a T2 is too dark there."""
ZERO_SHOT_LIMITS = """\
- Zero-shot synthesis (`midiffusion`) tells tissues by their shape and place, and by what is as bright as they are: of
  two that look alike in the source it guesses, and pathology that changes no shape is lost."""
T1CE_LIMITS = "- Of a T1ce that is made of a T1, {:.0%} is that T1 itself."
BRAIN_LIMITS = """\
- Of a head with its skull the segmenter finds the brain, which is synthesized apart; skull and face are worth little.
  Where the brain that was found lacks a part or has some of the face, so has what is made of it."""
SEGMENTER_LIMITS = """\
- The segmenter is for comparing images, not for volumetry or for finding lesions: it has seen simulated heads alone."""
PARTS = {
    "midiffusion": (
        "Zero-shot synthesis (`midiffusion`), and the segmenter in it, saw images of its targets alone; in the place "
        "of sources they saw them in made-up contrasts of their tissues."
    ),
    "segmenter": "The segmenter saw single images with their tissues.",
    "classifier": "The classifier of contrasts saw single images with their names.",
}
# What the licence of a data set asks to be cited, by the names of its subjects.
CITATIONS = {
    r"open-ms-\d+": (
        "open_ms_data of the Laboratory of Imaging Technologies, University of Ljubljana (CC BY): Lesjak Ž., Pernuš "
        "F., Likar B., Špiclin Ž.: A Novel Public MR Image Dataset of Multiple Sclerosis Patients With Lesion "
        "Segmentations Based on Multi-rater Consensus. Neuroinformatics 2017, doi:10.1007/s12021-017-9348-7."
    )
}
_SIMULATED = "Simulated contrast"
_AGAIN = f"{_SIMULATED} as before."
_DRAWS = 1000  # of a protocol: its ranges are found by drawing


def write_card(
    title: str,
    *,
    recipes: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    stages: str,
    evaluations: Sequence[Path],
    t1_in_t1ce: float = 0.0,
    brain_apart: bool = False,
) -> str:
    """The card, as Markdown.

    Args:
        recipes: the settings of what was trained, in that order; of each, "data" and the folder "run", and "said" of
            weights that came in a package: what its metadata say of their data, with "subjects" whom it names.
        parts: recipes like those of what was trained apart, by stage: "midiffusion", "segmenter", "classifier".
        stages: what is said about the training itself.
        evaluations: files ``evaluation.json``; each becomes a section of results.
        t1_in_t1ce: share of the T1 in a T1ce that is made of it.
        brain_apart: whether the brain of a whole head is synthesized apart.

    Raises:
        InputError: an evaluation, or the splits of a run on scans, cannot be read.
    """
    apart, trained = dict(parts or {}), trained_subjects(recipes)
    limits = [LIMITS, *[SIMULATION_LIMITS] * simulated(recipes), *[ZERO_SHOT_LIMITS] * ("midiffusion" in apart)]
    limits += [SEGMENTER_LIMITS] * ("segmenter" in apart)
    limits += [BRAIN_LIMITS] * brain_apart
    limits += [T1CE_LIMITS.format(t1_in_t1ce)] * (t1_in_t1ce > 0)
    said = [f"# {title}", "## Intended use", INTENDED_USE]
    said += ["## Training data", data_source(recipes), *part_sources(apart, data_source(recipes))]
    said.append(citations(sorted({*trained, *(name for each in apart.values() for name in trained_subjects(each))})))
    if simulated(recipes):
        said += ["## Simulated protocols", _protocols(recipes[-1]["data"]["pathology"])]
    said += ["## Training", stages]
    said += [_results(path, trained) for path in evaluations]
    said += ["## Limits", "\n".join(limits)]
    return "\n\n".join(filter(None, said)) + "\n"


def data_source(recipes: Sequence[Mapping[str, Any]]) -> str:
    """What the networks have seen, in a few sentences."""
    return _joined(recipes) + " The networks saw no patient's image." * (not trained_subjects(recipes))


def part_sources(parts: Mapping[str, Sequence[Mapping[str, Any]]], before: str) -> list[str]:
    """The same of each part that was trained apart, a paragraph each; what was said ``before`` is not said again."""
    paragraphs = []
    for stage, recipes in parts.items():
        said, trained = part_data(recipes)
        said = f"{_SIMULATED} as above." if not trained and said in before else said
        paragraphs.append(f"{PARTS[stage]} {said}" + " No patient's image was among them." * (not trained))
    return paragraphs


def part_data(recipes: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """What a part that was trained apart has seen, in a few sentences, and the names of the scanned subjects in it."""
    return _joined(recipes), trained_subjects(recipes)


def _joined(recipes: Sequence[Mapping[str, Any]]) -> str:
    """One run after the other; those that saw nothing else than the ones before are not named again."""
    runs, known = [], set()
    for recipe in recipes:
        parts = [recipe["said"]] if recipe.get("said") else _data_source(recipe["data"], trained_subjects([recipe]))
        if not known.issuperset(parts):
            runs.append(" ".join(_AGAIN if part in known and part.startswith(_SIMULATED) else part for part in parts))
        known.update(parts)
    return " Then: ".join(runs)


def citations(trained: Sequence[str]) -> str:
    """What must be cited for the subjects that were trained on, as a list; "" for none."""
    return "\n".join(f"- {text}" for key, text in CITATIONS.items() if any(re.fullmatch(key, name) for name in trained))


def trained_subjects(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the scanned subjects on which the runs of the recipes were trained, from their splits.

    Raises:
        InputError: the splits of a run on scans are missing or damaged.
    """
    names = {name for recipe in recipes for name in recipe.get("subjects", ())}
    for path in dict.fromkeys(recipe["run"] / "splits.json" for recipe in recipes if recipe["data"]["real"]):
        try:
            names |= set(json.loads(path.read_text(encoding="utf-8"))["splits"]["train"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"'{path}', which says on whom a run was trained, cannot be read ({error!r}).") from error
    return sorted(names)


def protocol_table() -> str:
    """The ranges of every contrast's protocols, as the simulator draws them: Markdown, times in ms, angles in degrees.

    The narrow protocols are those of the targets, the wide ones of the sources.
    """
    lines = []
    for modality in MODALITIES:
        for kind, draw in (("target", canonical_protocol), ("source", wide_protocol)):
            lines += [[modality, kind, *cells] for cells in _ranges(modality, draw)]
    columns = ("TR", "TE", "TI", "flip angle", "field (T)", "fat signal", "contrast agent")
    return tables.table(["contrast", "as", "sequence", "share", *columns], lines)


def _ranges(modality: str, draw: Callable[[str, torch.Generator], Mapping[str, Any]]) -> list[list[str]]:
    """Of every sequence that is drawn for a contrast, its share and the ranges of its settings."""
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(modality, generator) for _ in range(_DRAWS)]
    rows = []
    for sequence in dict.fromkeys(protocol["sequence"] for protocol in drawn):
        chosen = [protocol for protocol in drawn if protocol["sequence"] == sequence]
        row = [sequence, f"{100 * len(chosen) / _DRAWS:.0f} %"]
        for key in ("tr", "te", "ti", "flip", "field", "fat", "dose"):
            # only contrast-enhanced images know a dose
            values = [protocol[key] for protocol in chosen if key in protocol and (key != "dose" or modality == "T1ce")]
            if not values:
                row.append("–")
                continue
            low, high = (f"{float(f'{round(end, 2):.3g}'):g}" for end in (min(values), max(values)))
            row.append(low if low == high else f"{low} to {high}")
        rows.append(row)
    return rows


def _protocols(pathology: float) -> str:
    chances = {kind: 100 * min(pathology * chance, 1) for kind, chance in PATHOLOGY.items()}
    return f"""\
{protocol_table()}

Times in ms, angles in degrees, contrast agent in standard doses; ranges of {_DRAWS} draws. Targets are clean images \
of the narrow protocols, without the shading of coils: results get that of their sources afterwards. Sources follow \
the wide ones, may be displaced by up to {SHIFT:g} mm and {TURN:g} degree, and get a bias field, motion, thick slices, \
blur, noise and a gamma (`training/simulation/artefacts.py`); some have a contrast that follows no physics. T1ce as a \
target repeats the protocol of a source T1 in {SAME_SESSION:.0%} of the cases that have one. A head has white-matter \
lesions with a chance of {chances["lesions"]:.0f} %, a \
glioma with {chances["glioma"]:.0f} %, an infarct with {chances["infarct"]:.0f} %."""


def _results(path: Path, trained: Sequence[str]) -> str:
    """A section of results, from an evaluation's JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        about, records, drops = (content[key] for key in ("about", "records", "robustness"))
        methods = tables.methods_of(records)
        meaning = "PSNR in dB / SSIM over the crop of the head, mean over subjects"
        judged = "; in brackets, by another implementation" * any("judge_psnr" in row for row in records)
        parts = [f"## Results on {about['data']}", _subjects(about, trained), f"{meaning}{judged}."]
        parts += [tables.main_table(records), *(tables.subject_table(records, method) for method in methods)]
        parts.append(tables.several_sources(records, methods))
        if any("lesion_contrast" in row for row in records):
            parts += ["### Lesions", tables.lesion_table(records, methods), tables.LESIONS]
            parts.append(tables.lesion_failures(records, methods))
        if drops:
            parts += ["### Loss in dB when the source is corrupted", tables.robustness_table(drops), tables.ROBUSTNESS]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is no evaluation.json that can be read ({error!r}); run evaluate again.") from error
    return "\n\n".join(filter(None, parts))


def _subjects(about: Mapping[str, Any], trained: Sequence[str]) -> str:
    """Who was measured, and by which weights."""
    own = [name for name in about["subjects"] if name in about["own"]]
    seen = [name for name in about["subjects"] if name in trained and name not in own]
    sentences = [f"Subjects: {', '.join(about['subjects'])}."]
    if own:
        sentences.append(
            f"Each of {', '.join(own)} was predicted by weights that were trained without it, all else being equal."
        )
    if seen:
        sentences.append(f"These weights were trained on {', '.join(seen)}, so that those numbers say nothing.")
    return " ".join(sentences)


def _data_source(data: Mapping[str, Any], trained: Sequence[str]) -> list[str]:
    """What one run has seen: of scans, and of simulated heads."""
    parts = []
    if data["real"]:
        share = f"{100 * data['real_share']:.0f} % of the pairs"
        named = ": " + ", ".join(trained) if len(trained) <= 10 else f" of '{Path(data['real']).name}'"
        painted = ", with pathology of the simulator painted into skull-stripped ones" * (data["real_pathology"] > 0)
        parts.append(f"Scans, {share}, of {len(trained)} subject{'s' * (len(trained) != 1)}{named}{painted}.")
    if not data["real"] or data["real_share"] < 1:
        maps = {None: "", "procedural": "a made-up head in the place of "}
        anatomy = maps.get(data["anatomies"], "label maps of individuals (SynthSeg training labels, Apache-2.0) and ")
        parts.append(
            f"{_SIMULATED}: {anatomy}the MNI152 tissue maps that nilearn carries, with relaxation times, signal "
            "equations and artefacts of training/simulation. Its protocols were adjusted to tissue statistics "
            "(medians, sharpness) of a few public scans."
        )
    return parts


def simulated(recipes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether simulated heads were among what was learned from."""
    return any(not recipe["data"]["real"] or recipe["data"]["real_share"] < 1 for recipe in recipes)
