"""The evaluation: every paired method of a package on pairs of contrasts of every subject."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from MissingModalitySynthLib.device import choose_device
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.metrics import dice
from MissingModalitySynthLib.model_package import ModelPackage
from MissingModalitySynthLib.package_format import ZERO_SHOT
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.synthesis import Result, synthesize
from MissingModalitySynthLib.translators import Translator, build_translator
from MissingModalitySynthLib.volume import Volume

from ..data.atomic import replacing
from ..logbook import memory_gigabytes
from . import anchors, figures, report, tables
from .cases import Case, segment, segmenter_grid
from .protocols import Judge, calibrate, score
from .robustness import corruptions

FIGURE_CASES = 4  # subjects with pictures; more are seldom looked at
Pair = tuple[tuple[str, ...], str]  # sources and target


@dataclass(frozen=True)
class Contender:
    """One row of the tables: a method of the package, at one number of steps."""

    label: str
    method: str
    steps: int | None
    samples: int = 1


@dataclass
class Findings:
    """What an evaluation has found so far; plain data.

    Attributes:
        records: a prediction each: subject, sources (joined by " + "; "" for anchors without), target, method, steps,
            samples, seconds (of one volume, without loading the model), and the scores of ``protocols.score``.
        calibrations: of predictions with a standard deviation: ``metrics.calibration``.
        notices: sentences of the engine; pictures: names of files.
        drops: of corrupted sources: psnr of the head crop, and drop, the loss against the uncorrupted source in dB.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    calibrations: list[dict[str, Any]] = field(default_factory=list)
    drops: list[dict[str, Any]] = field(default_factory=list)
    notices: dict[str, None] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        self.records += other.records
        self.calibrations += other.calibrations
        self.drops += other.drops
        self.notices |= other.notices
        self.pictures += other.pictures


@dataclass(frozen=True)
class Options:
    """What is evaluated.

    Attributes:
        pairs: sources and target; empty: every contrast from every other, and FLAIR from T1 and T2.
        steps: of iterative methods; empty: the default of each.
        samples: of stochastic methods, whose mean is scored and whose deviation is calibrated, beside one sample;
            1: none.
        many_to_one: also predict each contrast from all others.
        robustness: also corrupt single sources, for the default method and the pairs of ``tables.MAIN_PAIRS``, or for
            all pairs where none of these is evaluated.
        device: of the engine.
        shading: whether results get the shading of their sources: scans that they are compared with have it, simulated
            targets have none.
    """

    pairs: Sequence[Pair] = ()
    steps: Sequence[int] = ()
    samples: int = 4
    many_to_one: bool = False
    robustness: bool = False
    device: str = "cpu"
    shading: bool = True

    def chosen(self, sources: Sequence[str], targets: Sequence[str]) -> list[Pair]:
        """The pairs among the contrasts that there are, in the order in which they are evaluated."""
        pairs = list(self.pairs) or [((source,), target) for source in sources for target in targets]
        if not self.pairs:
            pairs += [(tuple(names.split(" + ")), target) for names, target in tables.MAIN_PAIRS if " + " in names]
        if self.many_to_one:
            pairs += [(tuple(name for name in sources if name != target), target) for target in targets]
        return [
            (names, target)
            for names, target in dict.fromkeys(pairs)
            if names and set(names) <= set(sources) and target in targets and target not in names
        ]


def _paired(package: ModelPackage) -> list[str]:
    return [method for method in package.methods if method != ZERO_SHOT]


def evaluate(
    package: ModelPackage,
    cases: Iterable[Case],
    output: Path,
    *,
    own: Mapping[str, ModelPackage],
    options: Options,
    about: dict[str, Any],
    count: int,
    judge: Judge | None = None,
    segmenter: nn.Module | None = None,
    skipped: dict[str, str],
    policy: str = "skip",
) -> str:
    """Evaluate a package and write ``evaluation.md``, ``.csv``, ``.json`` and ``figures/*.png``.

    Args:
        own: by name of a subject, the package that predicts it in the place of the first: one that did not train on it.
        cases: subjects; one that cannot be evaluated is named in ``skipped``, or ends all if the policy is "stop".
        about: what is said about model and data, plain data.
        count: of the cases, for the progress bar.
        judge: scores every prediction as well, in its own way; see :func:`~.protocols.load_judge`.
        segmenter: compares the anatomy of synthetic and acquired images.

    Returns:
        The tables of pairs, lesions and corruptions, as Markdown.

    Raises:
        InputError: no subject could be evaluated.
        OutputError: the results cannot be written.
    """
    default = _translator(package, package.default_method).to(choose_device(options.device)[0])
    paired = _paired(package)
    if not paired:
        raise InputError(f"The package '{package.name}' has zero-shot synthesis alone; paired methods are evaluated.")
    for each in own.values():
        if _paired(each) != paired or each.default_method != package.default_method:
            raise InputError(f"The packages '{each.name}' and '{package.name}' have not the same methods.")
    contenders = [contender for method in paired for contender in _contenders(package, method, options)]
    findings, subjects = Findings(), {}
    with tqdm(total=count, desc="evaluate", unit="subject", file=sys.stderr, mininterval=1) as bar:
        for case in cases:
            bar.set_postfix_str(case.name)
            evaluation = _Evaluation(own.get(case.name, package), default, contenders, options, judge, segmenter)
            pictures = output / "figures" if len(subjects) < FIGURE_CASES else None
            try:
                evaluation.run(case, pictures)
            except InputError as error:
                sentence = f"Subject '{case.name}': {error}"
                if policy == "stop":
                    raise type(error)(sentence) from error
                skipped[case.name] = sentence
                tqdm.write(f"Skipped: {sentence}", file=sys.stderr)
            else:
                findings.add(evaluation.findings)
                subjects[case.name] = list(case.targets)
            bar.update()
    if not subjects:
        raise InputError(f"No subject could be evaluated. {next(iter(skipped.values()), '')}".strip())
    about |= {"subjects": subjects, "skipped": skipped, "device": options.device, "notices": list(findings.notices)}
    about["memory_gigabytes"] = round(memory_gigabytes(options.device), 2)
    summary = tables.summarise(findings.records)
    curves = report.mean_curves(findings.calibrations)
    if curves:
        figures.write_calibration(output / "figures" / "calibration.png", curves)
    content = {
        "about": about,
        "summary": summary,
        "records": findings.records,
        "calibration": findings.calibrations,
        "robustness": findings.drops,
    }
    for name, text in {
        "evaluation.json": json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "evaluation.csv": tables.to_csv(findings.records),
        "evaluation.md": report.markdown(about, summary, findings),
    }.items():
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return report.printed(findings, tables.methods_of(summary))


def plain(value: Any) -> Any:
    """The value in terms of JSON; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class _Evaluation:
    """One subject against everything."""

    package: ModelPackage
    translator: Translator
    contenders: Sequence[Contender]
    options: Options
    judge: Judge | None
    segmenter: nn.Module | None
    findings: Findings = field(default_factory=Findings)

    def run(self, case: Case, pictures: Path | None) -> None:
        known = [name for name in case.targets if name in self.package.targets]
        usable = [name for name in case.sources if name in self.package.sources]
        pairs = self.options.chosen(usable, known)
        if not pairs:
            raise InputError(
                f"has no pair of contrasts from {', '.join(self.package.sources)} to {', '.join(self.package.targets)}"
                + " among those that were asked for." * bool(self.options.pairs)
            )
        for target in dict.fromkeys(target for _, target in pairs):
            acquired = case.targets[target]
            ceiling = anchors.first_stage_ceiling(self.translator, acquired, self.package.spacing)
            self._record(case, "", target, anchors.CEILING, ceiling)
            if case.tissues is not None:
                mean = anchors.tissue_mean(acquired.array, case.tissues, case.mask)
                self._record(case, "", target, anchors.TISSUE_MEAN, mean)
        for sources in dict.fromkeys(names for names, _ in pairs):
            targets = [target for names, target in pairs if names == sources]
            if len(sources) == 1:
                for target in targets:
                    source, acquired = case.sources[sources[0]].array, case.targets[target].array
                    self._record(case, sources[0], target, anchors.COPY, source)
                    oracle = anchors.voxelwise_oracle(source, acquired, case.mask)
                    self._record(case, sources[0], target, anchors.ORACLE, oracle)
            for contender in self.contenders:
                self._contend(case, sources, targets, contender, pictures)
        if self.options.robustness:
            single = [(names[0], target) for names, target in pairs if len(names) == 1]
            single = [pair for pair in single if pair in tables.MAIN_PAIRS] or single
            for source in dict.fromkeys(name for name, _ in single):
                self._corrupt(case, source, [target for name, target in single if name == source])

    def _contend(
        self, case: Case, sources: tuple[str, ...], targets: list[str], contender: Contender, pictures: Path | None
    ) -> None:
        volumes = {name: case.sources[name] for name in sources}
        result, seconds = self._synthesize(volumes, targets, contender)
        self.findings.notices |= dict.fromkeys(result.notices)
        joined = " + ".join(sources)
        for target in targets:
            array = result.volumes[target].array
            made = result.provenance[target]
            extra = {"steps": made["steps"], "samples": made["samples"], "seconds": seconds}
            self._record(case, joined, target, contender.label, array, extra)
            if target in result.deviations:
                found = calibrate(array, result.deviations[target].array, case.targets[target].array, case.mask)
                where = {"subject": case.name, "sources": joined, "target": target, "method": contender.label}
                self.findings.calibrations.append(where | found)
        if pictures is not None:
            name = re.sub(r"[^\w.+-]+", "-", f"{case.name}-from-{'+'.join(sources)}-{contender.label}") + ".png"
            titles = {
                row["target"]: f"{case.name}: {joined} → {row['target']}, {contender.label}: {row['psnr']:.2f} dB"
                for row in self.findings.records[-len(targets) :]
            }
            arrays = {target: result.volumes[target].array for target in targets}
            figures.write_comparison(pictures / name, case, volumes, arrays, titles)
            self.findings.pictures.append(name)

    def _synthesize(
        self, sources: Mapping[str, Volume], targets: Sequence[str], contender: Contender
    ) -> tuple[Result, float]:
        request = Request(
            sources,
            targets,
            self.package,
            method=contender.method,
            steps=contender.steps,
            samples=contender.samples,
            device=self.options.device,
            shading=self.options.shading,
        )
        result = synthesize(request)
        seconds = sum(spent for stage, spent in result.seconds.items() if stage != "load model")
        return result, seconds / len(targets)

    def _record(
        self,
        case: Case,
        sources: str,
        target: str,
        method: str,
        prediction: np.ndarray,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        acquired = case.targets[target]
        record = {"subject": case.name, "sources": sources, "target": target, "method": method, **(extra or {})}
        record |= score(prediction, acquired, case, paper=bool(extra) or method == anchors.CEILING)
        if self.judge is not None:
            found = self.judge(prediction, acquired.array, case.mask)
            record |= {f"judge_{key}": float(value) for key, value in found.items()}
        if extra and self.segmenter is not None:  # anchors are not segmented
            grid = segmenter_grid(acquired, case.mask)
            synthetic = Volume(prediction, acquired.geometry)
            labels = [segment(self.segmenter, volume, grid) for volume in (synthetic, acquired)]
            for index, name in enumerate(CLASSES[1:], start=1):
                record[f"dice_{name.replace(' ', '_')}"] = dice(*labels, index)
        self.findings.records.append(record)

    def _corrupt(self, case: Case, name: str, targets: list[str]) -> None:
        contender = next(each for each in self.contenders if each.method == self.package.default_method)
        source = case.sources[name]
        clean = self._synthesize({name: source}, targets, contender)[0]
        for corruption, volume, back, mask in corruptions(case, source):
            result = self._synthesize({name: volume}, targets, contender)[0]
            for target in targets:
                acquired = case.targets[target].array
                before, after = (
                    report.head_psnr(array, acquired, mask)
                    for array in (clean.volumes[target].array, back(result.volumes[target]))
                )
                where = {"subject": case.name, "sources": name, "target": target, "method": contender.label}
                self.findings.drops.append(where | {"corruption": corruption, "psnr": after, "drop": before - after})


def _translator(package: ModelPackage, method: str) -> Translator:
    return build_translator(method, package.configuration(method), package.weights(method))


def _contenders(package: ModelPackage, method: str, options: Options) -> Iterator[Contender]:
    translator = _translator(package, method)
    all_steps = (options.steps or [translator.default_steps]) if translator.iterative else [None]
    for steps in all_steps:
        words = [method, *([translator.mode] if translator.iterative else [])]
        words += [f"{steps} step{'s' * (steps > 1)}"] if steps else []
        yield Contender(" ".join(words), method, steps)
        if translator.stochastic(steps or 1) and options.samples > 1:
            yield Contender(" ".join([*words, f"mean of {options.samples}"]), method, steps, options.samples)
