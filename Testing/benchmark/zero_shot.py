"""Zero-shot translation to T1, judged by a segmenter that knows nothing but T1: the table of Wang et al. (2023, 2024).

    python Testing/benchmark/zero_shot.py --judge RUN --output FOLDER --anatomies HELD_OUT [--subjects SCANS] \\
        [--ours RUN_OR_PACKAGE] [--published RUN] [--cyclegan RUN] [--paired PACKAGE] [--ablation] [--only TEXT ...] \\
        [--slab 32 | --judged 12] [--with-skull]

The runs are those of ``training/configs/micro-zero-shot.yaml``, ``segmenter.yaml`` and ``cyclegan.py``, and must not
have seen the anatomies. PD, T2 and FLAIR of simulated heads are translated to T1, and T2 and FLAIR of scans. Dice is
the mean over CSF, grey, white and deep grey matter between the segmentation of the translated image and the truth
(simulated) or the segmentation of the acquired T1 (scans); beside it, that of simulated heads with the segmentation of
the T1. The records have each class by itself, and lesions, which the mean leaves out, with their contrast to white
matter as a share of the image's range.

What the output folder has from an earlier call is kept and not measured again: a slow row can have a call of its own,
on fewer heads; other runs and numbers of steps need a folder of their own. As published, which goes slice by slice, a
volume takes hours on a CPU: with ``--judged`` the published form makes so many slices alone, and a second table judges
these slices of all rows; the judge, which works in three dimensions, sees them amid the other slices of the acquired
T1. With ``--slab`` all rows see and make so many slices alone, for a quick ablation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import cyclegan
import numpy as np
import torch
from torch import nn

from MissingModalitySynthLib import metrics
from MissingModalitySynthLib.canonical import canonical_grid, from_canonical, to_canonical
from MissingModalitySynthLib.device import channels_last
from MissingModalitySynthLib.intensity import BRIGHTEST, DARKEST, intensity_range, normalise
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.package_format import ZERO_SHOT
from MissingModalitySynthLib.segmentation import CLASSES, label
from MissingModalitySynthLib.translators import Translator, build_translator
from MissingModalitySynthLib.translators.midiffusion import MidiffusionTranslator, slices_of
from MissingModalitySynthLib.volume import Volume
from training.checkpoint import read_checkpoint
from training.configuration import load_configuration
from training.data.readers import find_subjects
from training.evaluation.cases import Case, read_case, simulated_cases
from training.evaluation.lesions import lesion_scores
from training.segmenter import load_segmenter
from training.stages import load_translator

TARGET = "T1"
SIMULATED, WITH_SKULL, SCANS = "simulated", "simulated, with skull", "scans"
PAIRS = {SIMULATED: ("PD", "T2", "FLAIR"), WITH_SKULL: ("PD", "T2", "FLAIR"), SCANS: ("T2", "FLAIR")}
# sources lie where the truth does, and have what artefacts research scans have
HEADS = ("data.misregistration=0", "data.artefacts=0.2")
JUDGED = range(1, len(CLASSES) - 1)  # CSF, grey, white and deep grey matter
PUBLISHED = "MIDiffusion as published"
LEGEND = "Dice with the truth (scans: the labels of the acquired T1), in brackets with these labels; PSNR."
SDEDIT_STARTS, SDEDIT_STEPS = (0.3, 0.6), 10
# of a head, the contrast to start from: T1 on its grid, or None if it cannot
Contender = Callable[[Case, str], np.ndarray | None]
Record = dict[str, Any]


def on_canonical_grid(multiple: int, make: Callable[[torch.Tensor, str], torch.Tensor | None]) -> Contender:
    """A contender that makes an image from (1, 1, X, Y, Z) in [-1, 1] and the name of its contrast.

    As the engine does, intensities are kept in their range, and what is not the head is exact background.
    """

    @torch.inference_mode()
    def contend(case: Case, name: str) -> np.ndarray | None:
        volume = case.sources[name]
        grid = canonical_grid(volume, (1.0, 1.0, 1.0), multiple, mask=case.mask)
        image = torch.from_numpy(normalise(to_canonical(volume, grid), native=volume.array)[0])[None, None]
        made = make(image, name)
        if made is None:
            return None
        inside = from_canonical(made[0, 0].clamp(DARKEST, BRIGHTEST).numpy() + 1, grid).array
        return np.where(case.mask, inside, 0)

    return contend


def translated(model: Translator, steps: int | None = None) -> Contender:
    """What a translator makes, by default in as many steps as are its own."""

    def make(image: torch.Tensor, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        count = steps or model.default_steps
        with torch.autocast("cpu", torch.bfloat16):  # not the decoder: it has the fine detail
            condition = model.condition(model.encode({name: image}), TARGET)
            latents = model.sample(condition, TARGET, steps=count, generator=generator, on_step=lambda *_: None)
        return model.decode(latents.float())

    return on_canonical_grid(model.multiple, make)


def by_slices(run: Path) -> Contender:
    """CycleGAN's generator of each source contrast that was trained, slice by slice."""
    generators = {name: cyclegan.load(run, name) for name in PAIRS[SIMULATED] if (run / name).exists()}

    def make(image: torch.Tensor, name: str) -> torch.Tensor | None:
        if name not in generators:
            return None
        with torch.autocast("cpu", torch.bfloat16):
            made = [generators[name](part).float() for part in slices_of(image).split(16)]
        return torch.cat(made).movedim(0, -1)[None]

    return on_canonical_grid(16, make)


def zero_shot_model(source: str, **changes: Any) -> MidiffusionTranslator:
    """The averaged translator of a run, or that of a package, with options of its sampler changed."""
    run = Path(source)
    if not (run / "midiffusion" / "checkpoint.safetensors").exists():
        package = load_package(source)
        options = package.configuration(ZERO_SHOT) | changes
        return channels_last(build_translator(ZERO_SHOT, options, package.weights(ZERO_SHOT)))
    width = "average.tissues.final_conv.weight"  # of the segmenter, which is a stage of its own
    weights, state = read_checkpoint(run / "midiffusion" / "checkpoint.safetensors", prefix=width)
    settings = {"segmenter": {"width": weights[width].shape[1]} if weights else {}} | state["configuration"]
    settings["midiffusion"] |= changes
    return channels_last(load_translator("midiffusion", settings, run))


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, Contender]]:
    """The rows of the table, and of the ablation."""
    yield f"acquired {TARGET}", lambda case, name: case.targets[TARGET].array
    yield "source, segmented directly", lambda case, name: case.sources[name].array
    if options.published:
        steps = options.published_steps
        yield f"{PUBLISHED}, {steps} steps", translated(zero_shot_model(options.published), steps)
    if options.ours:
        for start in SDEDIT_STARTS:
            model = zero_shot_model(options.ours, start=start, guidance=0.0, conditioned=False)
            yield f"SDEdit from {start}", translated(model, SDEDIT_STEPS)
        yield "ours", translated(zero_shot_model(options.ours))
        for words, changes in ABLATIONS.items() if options.ablation else ():
            steps = changes.get("steps")
            yield f"ours, {words}", translated(zero_shot_model(options.ours, **changes), steps)
    if options.cyclegan:
        yield "CycleGAN (knows the source)", by_slices(options.cyclegan)
    if options.paired:
        package = load_package(options.paired)
        method = package.default_method
        model = build_translator(method, package.configuration(method), package.weights(method))
        yield f"{package.name}, {method} (paired training)", translated(channels_last(model))


ABLATIONS: dict[str, dict[str, Any]] = {
    "without guidance": {"guidance": 0.0},
    "guidance 0.05": {"guidance": 0.05},
    "guidance 0.2": {"guidance": 0.2},
    "guidance alone, the network sees nothing": {"conditioned": False},
    "window 3": {"window": 3},
    "window 15": {"window": 15},
    "2 steps": {"steps": 2},
    "4 steps": {"steps": 4},
    "8 steps": {"steps": 8},
    "4 steps, guided from 0.2 to 0.8": {"steps": 4, "guidance_range": [0.2, 0.8]},
    "4 steps, guided late, 0 to 0.3": {"steps": 4, "guidance_range": [0.0, 0.3]},
    "from the noised source, 0.6": {"start": 0.6},
}


def identity(record: Record) -> tuple[str, ...]:
    """What was measured: head, source contrast, contender and part of the head."""
    return tuple(record[key] for key in ("kind", "case", "source", "row", "scope"))


def records_of(
    whole: Case,
    kind: str,
    judge: nn.Module,
    rows: list[tuple[str, Contender]],
    known: Container[tuple[str, ...]] = (),
    judged: int | None = None,
    part: str = "head",
) -> Iterator[Record]:
    """Every contender on every source of one head, but for what is known.

    Args:
        part: what the case shows.
        judged: slices in the middle of the head that are judged beside the whole, and all that the published form sees
            and makes; None: all.
    """
    slab, first = slab_of(whole, judged), first_of(whole, judged)
    slices = np.s_[:, :, first : first + slab.mask.shape[2]]
    acquired = whole.targets[TARGET]

    def labelled(array: np.ndarray) -> np.ndarray:
        return label(judge, replace(acquired, array=array), mask=whole.mask).array

    of_acquired = labelled(acquired.array)
    truth = of_acquired if kind == SCANS else whole.tissues
    for source in PAIRS[kind]:
        if source not in whole.sources:
            continue
        for row, contend in rows:
            partly = row.startswith(PUBLISHED) and judged is not None
            scopes = {} if partly else {part: np.s_[:, :, :]}
            scopes |= {f"{judged} slices": slices} if judged is not None else {}
            done = {"kind": kind, "case": whole.name, "source": source, "row": row}
            scopes = {scope: box for scope, box in scopes.items() if identity(done | {"scope": scope}) not in known}
            started = time.perf_counter()
            made = contend(slab if partly else whole, source) if scopes else None
            if made is None:
                continue
            done["seconds"] = time.perf_counter() - started
            for scope, box in scopes.items():
                image = made if partly else made[box]
                labels = labelled(image if scope == part else amid(acquired.array, box, image))[box]
                dice, agreement = (
                    {name: metrics.dice(labels, other[box], CLASSES.index(name)) for name in CLASSES[1:]}
                    for other in (truth, of_acquired)
                )
                means = {"dice": judged_mean(dice), "agreement": judged_mean(agreement)}
                scores = metrics.compare(image, acquired.array[box], whole.mask[box])
                by_class = {name: value for name, value in dice.items() if not np.isnan(value)}
                lesions = {}
                if whole.lesions is not None and scope == part:
                    lesions = lesion_scores(whole.lesions, *metrics.scale_to_target(image, acquired.array, whole.mask))
                yield done | {"scope": scope} | means | {"by_class": by_class, **lesions, **scores}


def judged_mean(dice: dict[str, float]) -> float:
    """Mean over the classes that count."""
    return mean(dice[CLASSES[index]] for index in JUDGED)


def amid(acquired: np.ndarray, box: tuple[slice, ...], made: np.ndarray) -> np.ndarray:
    """The acquired image with the slices that were made in it, between the percentiles of those that were acquired.

    A segmenter in three dimensions cannot tell where a few slices alone belong.
    """
    found, wanted = intensity_range(made), intensity_range(acquired[box])
    whole = acquired.astype(np.float32)
    whole[box] = wanted.low + (made - found.low) * ((wanted.high - wanted.low) / (found.high - found.low))
    return whole


def tables(records: Iterable[Record]) -> str:
    """A :func:`table` for each part of the heads that was judged, and what its columns are."""
    records = list(records)
    parts = dict.fromkeys(record["scope"] for record in records)
    judged = [f"Judged: {part}\n\n{table(record for record in records if record['scope'] == part)}" for part in parts]
    return "\n\n".join([*judged, LEGEND])


def table(records: Iterable[Record]) -> str:
    """Mean and standard deviation of Dice over the images, the Dice with the labels of the acquired T1, and PSNR."""
    records = list(records)
    columns = list(dict.fromkeys((record["kind"], record["source"]) for record in records))
    lines = [
        "| | " + " | ".join(f"{source} → {TARGET}, {kind}" for kind, source in columns) + " | seconds | images |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in dict.fromkeys(record["row"] for record in records):
        own = [record for record in records if record["row"] == row]
        cells = []
        for kind, source in columns:
            found = [record for record in own if (record["kind"], record["source"]) == (kind, source)]
            dice, agreement, psnr = ([record[key] for record in found] for key in ("dice", "agreement", "psnr"))
            spread = f" ± {np.std(dice, ddof=1):.3f}" if len(found) > 1 else ""
            other = f" ({np.mean(agreement):.3f})" if found and kind != SCANS else ""
            cells.append(f"{np.mean(dice):.3f}{spread}{other}, {np.mean(psnr):.2f} dB" if found else "")
        seconds = np.mean([record["seconds"] for record in own])
        lines.append(f"| {row} | {' | '.join(cells)} | {seconds:.1f} | {len(own)} |")
    return "\n".join(lines)


def first_of(case: Case, count: int | None) -> int:
    """The first of ``count`` slices across the array's last axis, around the middle of the head; None: all of them."""
    if count is None:
        return 0
    last = max(case.mask.shape[2] - count, 0)
    return min(max(round(np.nonzero(case.mask)[2].mean()) - count // 2, 0), last)


def slab_of(case: Case, count: int | None) -> Case:
    """These slices of a head."""
    if count is None:
        return case
    first = first_of(case, count)
    box = np.s_[:, :, first : first + count]

    def cut(volume: Volume) -> Volume:
        origin = tuple(volume.geometry.index_to_world((0, 0, first)))
        array = volume.array[box]
        return replace(volume, array=array, geometry=replace(volume.geometry, size=array.shape, origin=origin))

    sources, targets = ({name: cut(volume) for name, volume in each.items()} for each in (case.sources, case.targets))
    labels = {key: getattr(case, key) for key in ("mask", "tissues", "lesion", "brain")}
    labels = {key: None if array is None else array[box] for key, array in labels.items()}
    return replace(case, sources=sources, targets=targets, **labels)


def heads(configuration: dict[str, Any], options: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """Simulated heads, then scans."""
    for case in simulated_cases(configuration, options.heads + 1):
        if case.name != "simulated-001":  # the MNI152 maps come first, and are in every training
            yield WITH_SKULL if options.with_skull else SIMULATED, slab_of(case, options.slab)
    if options.subjects:
        for subject in find_subjects(options.subjects, "auto")[: options.scans]:
            yield SCANS, slab_of(read_case(subject), options.slab)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="run of the segmenter that judges")
    parser.add_argument("--output", type=Path, required=True, help="folder of the records and the table")
    parser.add_argument("--anatomies", type=Path, required=True, help="label maps that no training has seen")
    parser.add_argument("--heads", type=int, default=4, help="simulated heads (default: 4)")
    parser.add_argument("--with-skull", action="store_true", help="simulated heads as they are, not skull-stripped")
    parser.add_argument("--subjects", type=Path, help="scans with T1, T2 and FLAIR")
    fewer = parser.add_mutually_exclusive_group()
    fewer.add_argument("--slab", type=int, help="slices that are seen and made (default: all)")
    fewer.add_argument("--judged", type=int, help="slices that are made as published, and judged too (default: all)")
    parser.add_argument("--scans", type=int, help="how many of the scans, the first (default: all)")
    parser.add_argument("--ours", help="run or package")
    parser.add_argument("--published", help="run")
    parser.add_argument("--cyclegan", type=Path, help="run of cyclegan.py")
    parser.add_argument("--paired", help="package")
    parser.add_argument("--published-steps", type=int, default=25, help="of DDPM, 1000 in the paper (default: 25)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose names have any of these in them")
    parser.add_argument("--ablation", action="store_true", help="also change one setting of ours at a time")
    options = parser.parse_args()
    if options.heads > (known := len(list(options.anatomies.glob("training_seg_*.nii.gz")))):
        parser.error(f"'{options.anatomies}' has {known} label maps: ask for as many --heads at most.")
    judge = load_segmenter(options.judge / "segmenter" / "checkpoint.safetensors")
    rows = [row for row in contenders(options) if not options.only or any(text in row[0] for text in options.only)]
    recipe = Path(__file__).parents[2] / "training" / "configs" / "micro-zero-shot.yaml"
    stripped = f"data.skull_strip={0.0 if options.with_skull else 1.0}"
    configuration = load_configuration(recipe, [f"data.anatomies={options.anatomies}", stripped, *HEADS])
    part = "head" if options.slab is None else f"{options.slab} slices alone"
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "zero-shot.json"
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    known = {identity(record) for record in records}
    for kind, case in heads(configuration, options):
        for record in records_of(case, kind, judge, rows, known, options.judged, part):
            records.append(record)
            file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    text = tables(records)
    (options.output / "zero-shot.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
