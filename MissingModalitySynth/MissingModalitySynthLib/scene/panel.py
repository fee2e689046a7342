"""Every decision of the panel, as plain data computed from the scene, the packages, the worker and what was chosen.

The widget writes the user's choices into the parameter node and shows the :class:`View` that :func:`view_of` makes of
them; it decides nothing itself. Nothing here needs Qt, SimpleITK or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, SynthesisError
from ..modality import DISPLAY, OTHER, shown_name
from ..model_package import ListedPackage, ModelPackage
from ..package_format import ZERO_SHOT
from ..worker.jobs import START, WorkerInfo
from .choices import OTHER_CHOICE, ROWS, UNKNOWN, Choices, chosen_method, chosen_package, offered_methods, task_of
from .estimates import STARTING_SECONDS, is_iterative
from .provenance import is_synthetic, provenance_of, synthetic_nodes, synthetic_results
from .session import Session, Task, cost_of, device_of, duration
from .translation import _
from .volumes import check_scalar, geometry_of

_GIGABYTE = 1e9
_METHODS = {
    "aldm": _("ALDM"),
    "midiffusion": _("MIDiffusion (zero-shot)"),
    "regression": _("Regression (one step)"),
}


@dataclass(frozen=True)
class Option:
    """An entry of a combo box or list: what is stored, what is shown, and more about it."""

    key: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class View:
    """All that the panel shows.

    Attributes:
        input_rows: how many rows for source volumes are shown.
        targets: modalities that can be ticked.
        offer: why only zero-shot methods and their targets are offered; empty if others are too.
        packages, methods, devices, references: entries of the combo boxes.
        package, method, device, reference: keys of the current entries.
        iterative: whether the number of steps means anything.
        estimate: what the run would cost, in words; empty while there is nothing to run, and during a run.
        can_start: whether Synthesize does anything now.
        reason: why not, in one sentence; empty if it does.
        running, cancelling: whether the button cancels, and whether that is under way.
        button: the button's text.
        percent, stage: of the run.
        lines: progress of each target.
        message, problem: about the last run.
        results: entries of the list, newest last; the keys are node IDs.
        no_inputs: IDs of the synthetic volumes, which are not offered as inputs.
    """

    input_rows: int
    targets: tuple[str, ...]
    offer: str
    packages: tuple[Option, ...]
    package: str
    methods: tuple[Option, ...]
    method: str
    devices: tuple[Option, ...]
    device: str
    references: tuple[Option, ...]
    reference: str
    iterative: bool
    estimate: str
    can_start: bool
    reason: str
    running: bool
    cancelling: bool
    button: str
    percent: int
    stage: str
    lines: tuple[str, ...]
    message: str
    problem: bool
    results: tuple[Option, ...]
    no_inputs: tuple[str, ...]


def view_of(
    scene: Any,
    choices: Choices,
    packages: Sequence[ListedPackage],
    session: Session,
) -> View:
    """What the panel shows."""
    listed = chosen_package(choices, packages)
    package = listed.package if listed else None
    method = chosen_method(choices, package)
    given = {modality for _node, modality in choices.sources}
    targets = tuple(name for name in package.targets_of(method) if name not in given) if method else ()
    devices = _devices(session.client.info)
    device = choices.device if choices.device in {each.key for each in devices} else "auto"
    references = tuple(Option(modality, _on_grid_of(node, modality)) for node, modality in choices.sources)
    reference = next((each.key for each in references if each.key == choices.reference), "")
    reason = _reason(choices, listed, session.client.info)
    progress = session.progress
    made = [name for name in choices.targets if name in targets]
    return View(
        input_rows=min(len(choices.sources) + 1, ROWS),
        targets=targets,
        offer=_offer(choices, package, method),
        packages=tuple(_package_option(each) for each in packages),
        package=listed.name if listed else "",
        methods=tuple(Option(name, _METHODS.get(name, name)) for name in offered_methods(choices, package)),
        method=method,
        devices=devices,
        device=device,
        references=references,
        reference=reference or (references[0].key if references else ""),
        iterative=method != "" and is_iterative(method, package.configuration(method)),
        estimate="" if reason or session.running else _estimate(task_of(choices, packages), session),
        can_start=not reason and not session.running,
        reason="" if session.running else reason,
        running=session.running,
        cancelling=session.cancelling,
        button=_button(session, made),
        percent=round(100 * progress.fraction) if progress else 0,
        stage=_stage(session) if progress else "",
        lines=_lines(session),
        message=session.message.text,
        problem=session.message.problem,
        results=tuple(_result_option(node) for node in synthetic_results(scene)),
        no_inputs=tuple(node.GetID() for node in synthetic_nodes(scene)),
    )


def _package_option(listed: ListedPackage) -> Option:
    if listed.package is None:
        return Option(listed.name, _("{name} (cannot be used)").format(name=listed.name), listed.problem)
    return Option(listed.name, listed.package.title, listed.package.description)


def _devices(info: WorkerInfo | None) -> tuple[Option, ...]:
    """Automatic, each GPU, the CPU, as far as the worker has told."""
    rows = [Option("auto", _("Automatic"), _("The fastest device that works."))]
    for each in info.devices if info else ():
        if each.name != "cpu":
            size = _("{size:.0f} GB").format(size=each.memory_bytes / _GIGABYTE)
            text = f"{each.label} ({size})" if each.works else _("{label} (does not work)").format(label=each.label)
            rows.append(Option(each.name, text, each.reason))
    return (*rows, Option("cpu", _("CPU")))


def _on_grid_of(node: Any, modality: str) -> str:
    return _("Same as {name} ({modality})").format(name=node.GetName(), modality=shown_name(modality))


def _offer(choices: Choices, package: ModelPackage | None, method: str) -> str:
    """Why only zero-shot methods and their targets are offered; empty if others are too."""
    if method != ZERO_SHOT or not package.sources:
        return ""
    paired = (*package.sources, UNKNOWN)
    unlisted = [node.GetName() for node, modality in choices.sources if modality not in paired]
    text = _("Only zero-shot synthesis starts from a contrast like that of '{name}': nothing else is offered.")
    return text.format(name=unlisted[0]) if unlisted else ""


def _reason(choices: Choices, listed: ListedPackage | None, info: WorkerInfo | None) -> str:
    """Why a run cannot be started, in one sentence; empty if it can."""
    if listed is None:
        return _("There is no model: install a model package first.")
    if listed.package is None:
        return listed.problem
    package = listed.package
    if not choices.sources:
        return _("Load an MRI volume, or choose one under Inputs.")
    used: dict[str, str] = {}
    for node, modality in choices.sources:
        name = node.GetName()
        if is_synthetic(node):
            return _("'{name}' is synthetic itself: choose an acquired volume.").format(name=name)
        try:
            check_scalar(node)
        except SynthesisError as error:
            return str(error)
        if modality == UNKNOWN:
            if not package.zero_shot_targets:
                return _("The contrast of '{name}' is not known: choose it beside the volume.").format(name=name)
            return _(
                "The contrast of '{name}' is not known: choose it beside the volume, or '{other}' if it is not listed."
            ).format(name=name, other=OTHER_CHOICE)
        if modality in used and modality == OTHER:
            return _("'{first}' and '{second}' are both of an unlisted contrast: keep one of them.").format(
                first=used[modality], second=name
            )
        if modality in used:
            return _("'{first}' and '{second}' are both {modality}: keep one of them.").format(
                first=used[modality], second=name, modality=modality
            )
        if modality == OTHER and not package.zero_shot_targets:
            return _("This model cannot start from '{name}': choose its contrast, or a zero-shot model.").format(
                name=name
            )
        if modality not in package.sources and not package.zero_shot_targets:
            return _("This model cannot start from {modality}, only from {known}.").format(
                modality=modality, known=", ".join(package.sources)
            )
        used[modality] = name
    method = chosen_method(choices, package)
    if method == ZERO_SHOT and len(used) > 1:
        if len(offered_methods(choices, package)) > 1:
            return _("Zero-shot synthesis starts from one volume: keep one under Inputs, or choose another method.")
        return _("Zero-shot synthesis starts from one volume: keep one under Inputs.")
    if not any(name in package.targets_of(method) and name not in used for name in choices.targets):
        return _("Tick at least one contrast to synthesize.")
    for each in info.devices if info else ():
        if each.name == choices.device and not each.works:
            return _("{label} does not work ({reason}): choose another device.").format(
                label=each.label, reason=each.reason
            )
    return ""


def _estimate(task: Task, session: Session) -> str:
    device = device_of(session.client, task.device)
    try:
        cost = cost_of(task, geometry_of(task.sources[task.chosen_reference]), device, session.measured)
    except SynthesisError as error:
        return str(error)
    starting = STARTING_SECONDS if session.client.state in ("stopped", "starting") else 0.0
    kind = _("CPU") if device == "cpu" else _("GPU")
    text = _("About {time} and {memory:.1f} GB of memory on the {device}.").format(
        time=duration(max(cost.seconds + starting, 1.0)), memory=cost.memory / _GIGABYTE, device=kind
    )
    if not cost.measured:
        text += " " + _("A rough estimate until the first run.")
    for each in session.client.info.devices if session.client.info else ():
        if each.name == device and cost.memory > each.memory_bytes:
            text += " " + _("This may be more than the device has: crop the volume to the head.")
    return text


def _button(session: Session, targets: Sequence[str]) -> str:
    if session.cancelling:
        return _("Cancelling...")
    if session.running:
        return _("&Cancel")
    return _("&Synthesize {targets}").format(targets=", ".join(targets)) if targets else _("&Synthesize")


def _stage(session: Session) -> str:
    """What is being done, and how long the whole run will still take."""
    progress = session.progress
    info = session.client.info
    stages = {
        "": _("Handing the volumes over") if info else _("Starting the worker"),
        START: _("Handing the volumes over") if info and info.torch else _("Loading PyTorch"),
        "load model": _("Loading the model"),
        "prepare": _("Preparing the volumes"),
        "find brain": _("Finding the brain"),
        "encode": _("Encoding"),
        "condition": _("Conditioning"),
        "sample": _("Sampling"),
        "step 1 of 1": _("Computing"),
        "decode": _("Decoding"),
        "native grid": _("Returning to the volume's grid"),
        "segment": _("Segmenting"),
    }
    text = stages.get(progress.stage, progress.stage.capitalize())
    return _with_time(text, progress.seconds_left)


def _lines(session: Session) -> tuple[str, ...]:
    """How far each target is."""
    targets = session.progress.by_target() if session.progress else ()
    return tuple(_with_time(f"{each.target}: {each.percent} %", each.seconds_left) for each in targets)


def _with_time(text: str, seconds_left: float | None) -> str:
    """A time that has run out, or is about to, is not told: the last second can take several."""
    if seconds_left is None or seconds_left < 1:
        return text
    return _("{progress}, {time} left").format(progress=text, time=duration(seconds_left))


def _result_option(node: Any) -> Option:
    try:
        record = provenance_of(node)
    except InputError as error:
        return Option(node.GetID(), node.GetName(), str(error))
    target = record.get("target", "")
    hint = _("{title}, made with {package} ({method}) on {device}, {created}.").format(
        title=DISPLAY[target].title if target in DISPLAY else target,
        package=record.get("package", "?"),
        method=record.get("method", "?"),
        device=record.get("device", "?"),
        created=record.get("created", "?"),
    )
    return Option(node.GetID(), node.GetName(), hint)
