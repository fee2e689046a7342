"""From what the command line names, a run or a package, and scans or a recipe, to an evaluation."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.modality import canonical_name
from MissingModalitySynthLib.model_package import ModelPackage, load_package
from MissingModalitySynthLib.translators import METHODS

from ..data.readers import find_subjects
from ..data.subjects import Subject, check_subjects
from ..examples import real_subjects
from ..export import ABLATION, build_ablation, export
from ..segmenter import load_segmenter
from ..stages import CHECKPOINT
from .cases import Case, read_case, simulated_cases
from .protocols import load_judge
from .run import Options, Pair, evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command ``evaluate``, beside those that all commands share."""
    group = parser.add_argument_group("evaluate")
    group.add_argument(
        "--package",
        action="append",
        metavar="[SUBJECT=]PACKAGE",
        help="a model package, by name or folder, in the place of a run's networks; with SUBJECT=, again and again: of "
        "this subject alone, say one that did not train on it",
    )
    group.add_argument("--no-shading", action="store_true", help="results without the shading of their sources")
    group.add_argument("--subjects", type=Path, help="folder or CSV table of subjects, in the place of the recipe's")
    group.add_argument("--split", choices=("validation", "test"), help="of the recipe's scans (default: test)")
    group.add_argument("--judge", type=Path, help="Python file with scores(prediction, target, mask); it is run")
    group.add_argument("--pairs", type=_pairs, help="e.g. T1:T2,T1+T2:FLAIR; default: all, and FLAIR from T1 and T2")
    group.add_argument(
        "--brain", action="append", default=[], metavar="SUBJECT=FILE", help="label map of the brain of a whole head"
    )
    group.add_argument("--steps", type=_numbers, help="of iterative methods, e.g. 1,2,4; default: the method's own")
    group.add_argument("--samples", type=int, help="of stochastic methods, for their uncertainty (default: 4)")
    group.add_argument("--many-to-one", action="store_true", help="also predict each contrast from all others")
    group.add_argument("--robustness", action="store_true", help="also corrupt the sources, one way at a time")


def given(options: argparse.Namespace) -> list[str]:
    """Those of the options that were given, as the command line spells them."""
    names = (
        "package",
        "subjects",
        "split",
        "judge",
        "pairs",
        "brain",
        "steps",
        "samples",
        "many_to_one",
        "robustness",
        "no_shading",
    )
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False, [])]


def run(options: argparse.Namespace, configuration: Mapping[str, Any]) -> str:
    """Evaluate what the options name, write to ``options.output``, and return the main tables.

    Raises:
        SynthesisError: of every kind; nothing of a subject that failed is in the results.
    """
    judge = load_judge(options.judge) if options.judge else None
    segmenter = None
    if options.run and (checkpoint := options.run / "segmenter" / CHECKPOINT).exists():
        segmenter = load_segmenter(checkpoint)
    own = _by_subject(options.package or [])
    named = own.pop("", None)
    if options.package and named is None:
        raise InputError("--package is needed without a subject as well: it predicts all others.")
    with tempfile.TemporaryDirectory() as scratch:
        package = load_package(named) if named else _packed(configuration, options.run, scratch)
        packages = {name: load_package(folder) for name, folder in own.items()}
        skipped: dict[str, str] = {}
        cases, count, data = _cases(options, configuration, segmenter, skipped)
        heads = data.startswith("simulated")
        known = "of the simulation" if heads else "by two thresholds on the T1 (rough)"
        about = {
            "model": package.title if options.package else f"the run '{options.run.name}'",
            "package": _words(package),
            "own": {name: _words(each) for name, each in packages.items()},
            "data": data,
            "tissues": "by the run's segmenter" if segmenter and not heads else known,
        }
        return evaluate(
            package,
            cases,
            options.output,
            own=packages,
            options=Options(
                pairs=options.pairs or (),
                steps=options.steps or (),
                samples=4 if options.samples is None else options.samples,
                many_to_one=options.many_to_one,
                robustness=options.robustness,
                device=configuration["device"],
                shading=not (heads or options.no_shading),
            ),
            about=about,
            count=count,
            judge=judge,
            segmenter=segmenter,
            skipped=skipped,
            policy=configuration["data"]["broken"],
        )


def _by_subject(texts: Iterable[str]) -> dict[str, str]:
    """ "SUBJECT=VALUE" by subject; what has no subject is under ""."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        key, value = (name, value) if separator else ("", text)
        if key in found:
            raise InputError(f"'{value}' and '{found[key]}' are both given for {key or 'all subjects'}: choose one.")
        found[key] = value
    return found


def _words(package: ModelPackage) -> str:
    return f"{package.name} {package.metadata['version']}, SHA-256 {package.digest}"


def _packed(configuration: Mapping[str, Any], run: Path, scratch: str) -> ModelPackage:
    """The run as a package, so that its networks are used by the engine, as they will be: averaged, in float16."""
    METHODS.setdefault(ABLATION, build_ablation)
    return export(dict(configuration), run, Path(scratch) / "run", for_evaluation=True)


def _cases(
    options: argparse.Namespace, configuration: Mapping[str, Any], segmenter: Any, skipped: dict[str, str]
) -> tuple[Iterable[Case], int, str]:
    """The cases, how many there are, and what they are in words."""
    data = configuration["data"]
    if options.split and (options.subjects is not None or not data["real"]):
        raise InputError("--split chooses among the recipe's scans (data.real), which are not what is evaluated here.")
    if options.subjects is None and not data["real"]:
        if options.brain or any("=" in name for name in options.package or ()):
            raise InputError("Simulated heads are no subjects that --brain or --package could name: give --subjects.")
        stripped = {0: " with their skulls", 1: ", all skull-stripped"}.get(
            data["skull_strip"], ", some skull-stripped"
        )
        words = f"simulated heads{stripped} (seed {configuration['seed']}), new ones of the recipe's anatomies"
        return simulated_cases(configuration, options.cases), options.cases, words
    if options.subjects is not None:
        found = find_subjects(options.subjects, data["layout"], report=_say)
        subjects = _usable(found, configuration, skipped)
        words = f"subjects of '{options.subjects.name}'"
    elif options.run is None:
        raise InputError("The splits of the recipe's scans are in its run: give --run, or --subjects.")
    else:
        split = options.split or "test"
        subjects = real_subjects(dict(configuration), options.run)[split]
        words = f"split '{split}' of '{Path(data['real']).name}'"

    brains, names = _by_subject(options.brain), {subject.name for subject in subjects}
    if unknown := {*_by_subject(options.package or []), *brains} - names - {""}:
        raise InputError(f"There is no subject '{min(unknown)}', only {', '.join(sorted(names))}.")

    def cases() -> Iterator[Case]:
        common = {"register": data["register"], "segmenter": segmenter}
        common["folder"] = Path(data["cache"]) if data["cache"] else None
        for subject in subjects:
            try:
                case = read_case(
                    subject, brain=Path(brains[subject.name]) if subject.name in brains else None, **common
                )
            except InputError as error:
                if data["broken"] == "stop":
                    raise
                skipped[subject.name] = str(error)
                _say(f"Skipped: {error}")
            else:
                yield case

    return cases(), len(subjects), words


def _usable(found: list[Subject], configuration: Mapping[str, Any], skipped: dict[str, str]) -> list[Subject]:
    """The subjects without the contrasts that the recipe leaves out; those that are broken are named."""
    modalities, data = configuration["modalities"], configuration["data"]
    chosen = [
        replace(subject, files={name: path for name, path in subject.files.items() if name in modalities})
        for subject in found
    ]
    problems = check_subjects(chosen, register=data["register"])
    if problems and data["broken"] == "stop":
        raise InputError(next(iter(problems.values())))
    for problem in problems.values():
        _say(f"Skipped: {problem}")
    skipped |= problems
    return [subject for subject in chosen if subject.name not in problems]


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _pairs(text: str) -> tuple[Pair, ...]:
    pairs = []
    for part in text.split(","):
        sources, separator, target = part.partition(":")
        try:
            if not separator:
                raise InputError("A colon is missing.")
            pairs.append((tuple(canonical_name(name) for name in sources.split("+")), canonical_name(target)))
        except InputError as error:
            raise argparse.ArgumentTypeError(f"'{part}' is no pair such as T1:T2 or T1+T2:FLAIR ({error})") from error
    return tuple(pairs)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers of steps, such as 1,2,4")
    return numbers
