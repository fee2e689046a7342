"""The stages: what each trains, on what, and which earlier stage it builds on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import nn

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.networks import spade as spade_network
from MissingModalitySynthLib.networks.first_stage import FirstStage
from MissingModalitySynthLib.translators.aldm import AldmTranslator
from MissingModalitySynthLib.translators.base import Translator
from MissingModalitySynthLib.translators.regression import RegressionTranslator

from . import distributed
from .ablations import AblatedTranslator
from .autoencoder import autoencoder_losses, build_autoencoder
from .batches import Pair, by_number, simulated_pairs
from .checkpoint import averaged_weights, load_weights, with_prefix
from .configuration import SIMULATOR_OPTIONS, network_options, settings_of
from .loop import train
from .losses import Terms, bridge_losses, diffusion_losses, regression_losses, spade_losses
from .segmenter import CLASSES, SegmenterFeatures, build_segmenter, load_segmenter, segmenter_losses
from .simulation.anatomy import Anatomy, mni_anatomy, procedural_head, synthseg_anatomy

CHECKPOINT = "checkpoint.safetensors"
RECOMPUTED = (AEKLResBlock, DiffusionUNetResnetBlock, spade_network._ResidualBlock)
_MEASURED = 1 << 40  # the number of the first example that measures latents, after all that train
_ABLATED = ("use_spade", "use_palette", "use_denoiser")
Examples = Callable[[int], Pair]


class Stage(NamedTuple):
    """What :func:`~.loop.train` needs to know of a stage; ``take_over`` loads what earlier stages have learned."""

    model: nn.Module
    losses: Callable[[nn.Module, Pair, torch.Generator], Terms]
    show: Callable[[nn.Module, Pair], dict[str, torch.Tensor]]
    frozen: Sequence[nn.Module] = ()
    take_over: Callable[[Path, Examples], None] = lambda run, examples: None


def run_stage(stage: str, configuration: dict[str, Any], run: Path, max_minutes: float | None = None) -> None:
    """Train one stage in the folder ``run/stage``, resuming its checkpoint where there is one.

    Raises:
        InputError: the stage has nothing to train, or an earlier one is missing or of other networks, or the crops do
            not suit the networks; and those of :func:`~.loop.train`.
    """
    torch.manual_seed(configuration["seed"])
    examples = make_examples(configuration, run, all_images=stage == "regression")
    built = build_stage(stage, configuration)
    check_shapes(configuration["data"]["shapes"], built.model)
    built.take_over(run, examples)
    machine = dict(configuration["machine"])
    checkpointed = RECOMPUTED if machine.pop("gradient_checkpointing") else ()
    train(
        built.model,
        built.losses,
        examples,
        folder=run / stage,
        steps=int(configuration[stage]["optimizer_steps"]),
        configuration=settings_of(stage, configuration),
        frozen=built.frozen,
        show=built.show,
        checkpointed=checkpointed,
        seed=configuration["seed"],
        device=configuration["device"],
        max_minutes=max_minutes,
        **configuration["optimizer"],
        **machine,
    )


def check_shapes(shapes: Sequence[Sequence[int]], model: nn.Module) -> None:
    """Refuse crops that the networks of a stage cannot take. Those of the regression pad what they cannot halve."""
    smallest = 32 if isinstance(model, BasicUNet) else 16
    multiple = model.multiple if isinstance(model, AldmTranslator) else 16
    if wrong := [shape for shape in shapes if any(size < smallest or size % multiple for size in shape)]:
        raise InputError(
            f"The sizes of 'data.shapes' must be multiples of {multiple} and {smallest} or more for this stage, not "
            f"{wrong[0]}."
        )


@lru_cache(maxsize=1)
def load_anatomies(folder: str | None) -> list[Anatomy]:
    """The MNI152 tissue maps and every label map of a folder; for "procedural", a made-up head alone."""
    if folder == "procedural":
        return [procedural_head((96, 104, 96))]
    paths = sorted(Path(folder).glob("training_seg_*.nii.gz")) if folder else []
    if folder and not paths:
        raise InputError(f"The folder '{folder}' has no label maps named training_seg_*.nii.gz.")
    return [mni_anatomy(), *(synthseg_anatomy(path) for path in paths)]


def make_examples(configuration: dict[str, Any], run: Path, *, all_images: bool = False) -> Examples:
    """Training pairs by number: simulated heads, scans of the split "train" (in ``run/splits.json``), or a mixture.

    ``all_images`` as in :func:`~.batches.simulated_pairs`.
    """
    data, modalities, seed = (configuration[key] for key in ("data", "modalities", "seed"))
    share = data["real_share"] if data["real"] else 0.0
    common = {key: data[key] for key in ("shapes", "pairs_per_case")} | {"device": configuration["device"]}
    streams: list[Callable[[torch.Generator], Iterator[Pair]]] = []
    shares = [weight for weight in (1 - share, share) if weight > 0]
    if share < 1:
        simulated = {key: data[key] for key in SIMULATOR_OPTIONS} | {"all_images": all_images}
        heads = load_anatomies(data["anatomies"])
        streams.append(lambda g: simulated_pairs(heads, g, modalities=modalities, **common, **simulated))
    if share > 0:
        from .data.pairs import in_memory, mixed_pairs, subject_pairs

        with distributed.first_process_first():
            subjects = real_subjects(configuration, run)["train"]
        options = {"register": data["register"], "cache": Path(data["cache"]) if data["cache"] else None}
        skipped: dict[str, str] = {}  # shared by the streams of all cases: a broken subject is warned about once
        if data["kept_subjects"]:
            options = {"load": in_memory(subjects, data["kept_subjects"], **options)}
        options |= {"policy": data["broken"], "skipped": skipped}
        streams.append(lambda g: subject_pairs(subjects, g, **common, **options))
    if len(streams) == 1:
        return by_number(streams[0], seed, data["pairs_per_case"], data["cases"])
    in_a_row = data["pairs_per_case"]  # a case is of one stream: nothing of a head goes to waste
    return by_number(lambda g: mixed_pairs([s(g) for s in streams], shares, g, in_a_row), seed, in_a_row, data["cases"])


def real_subjects(configuration: dict[str, Any], run: Path) -> dict[str, list]:
    """The scanned subjects by split, each with its contrasts among the configuration's."""
    from .data.readers import find_subjects
    from .data.splits import split_subjects
    from .data.subjects import usable_subjects

    data, modalities = configuration["data"], configuration["modalities"]
    found = [
        replace(subject, files={name: path for name, path in subject.files.items() if name in modalities})
        for subject in find_subjects(Path(data["real"]), data["layout"])
    ]
    usable = usable_subjects(found, policy=data["broken"], register=data["register"])
    return split_subjects(usable, data["splits"], configuration["seed"], run / "splits.json")


def translator_options(method: str, configuration: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a method's translator, as the package will hold them."""
    networks = network_options(configuration)
    options = {"modalities": list(configuration["modalities"]), "first_stage": networks["first_stage"]}
    if method == "regression":
        return options | {"unet": networks["regression"]}
    chosen = {key: configuration["diffusion"][key] for key in ("mode", "steps", "sigma", "eta")}
    return options | {"spade": networks["spade"], "denoiser": networks["denoiser"]} | chosen


def is_ablated(configuration: dict[str, Any]) -> bool:
    """Whether the configuration leaves out a part that every package has."""
    return not all(configuration["diffusion"][key] for key in _ABLATED)


def build_aldm(configuration: dict[str, Any]) -> AldmTranslator:
    """The translator, with the parts left out that an ablation names."""
    options = translator_options("aldm", configuration)
    if not is_ablated(configuration):
        return AldmTranslator(**options)
    return AblatedTranslator(**options, **{key: configuration["diffusion"][key] for key in _ABLATED})


def load_translator(method: str, configuration: dict[str, Any], run: Path) -> Translator:
    """The averaged translator that a run has trained, in evaluation mode on the CPU; an ablated one, too.

    Raises:
        InputError: its last stage was not trained, or with other networks.
    """
    stage = "regression" if method == "regression" else "diffusion"
    if stage == "regression":
        model: Translator = RegressionTranslator(**translator_options(method, configuration))
    else:
        model = build_aldm(configuration)
        if not configuration["diffusion"]["use_denoiser"]:
            stage, model.denoiser = "spade", None
    _take(model, run, stage)
    return model.requires_grad_(False).eval()


def load_first_stage(
    model: Translator, configuration: dict[str, Any], stage: str, run: Path, examples: Examples
) -> None:
    """Take over the autoencoder, where the first stage is a learned one, and whiten its latents.

    Nothing is done where the stage has a checkpoint already, which holds both.
    """
    if (run / stage / CHECKPOINT).exists():
        return
    first_stage = model.first_stage.eval()
    if next(first_stage.parameters(), None) is not None:
        _take(first_stage, run, "autoencoder", "first_stage.")
    whiten(first_stage.to(configuration["device"]), [examples(number).image for number in _measured()])


def _measured() -> range:
    return range(_MEASURED, _MEASURED + 12)


@torch.no_grad()
def measure_spread(model: AldmTranslator, pairs: Sequence[Pair]) -> None:
    """Measure by channel how far the latents of targets are from the target-like ones: what is left to the bridge."""
    squares = []
    for pair in pairs:
        latents = model.first_stage.encode(pair.image)
        departure = latents - model.condition(model.encode(pair.sources), pair.target)
        squares.append(departure.square().mean(dim=(0, 2, 3, 4)))
    model.spread.copy_(torch.stack(squares).mean(dim=0).sqrt().clamp_min(1e-3))


@torch.no_grad()
def whiten(stage: FirstStage, images: Sequence[torch.Tensor]) -> None:
    """Measure the latents' mean and standard deviation per channel on images of any sizes."""
    latents = torch.cat([stage.raw_encode(image).float().transpose(0, 1).flatten(1) for image in images], dim=1)
    stage.latent_mean.copy_(latents.mean(dim=1))
    stage.latent_std.copy_(latents.std(dim=1).clamp_min(1e-6))


def _take(module: nn.Module, run: Path, stage: str, prefix: str = "") -> None:
    """Load the averaged weights of an earlier stage, or of the part of them that ``prefix`` names."""
    path = run / stage / CHECKPOINT
    if not path.exists():
        raise InputError(f"'{path}' does not exist: train the stage '{stage}' first.")
    load_weights(module, with_prefix(averaged_weights(path)[0], prefix), path)


def build_stage(stage: str, configuration: dict[str, Any]) -> Stage:
    """The networks of a stage with random weights, and how they are trained.

    Raises:
        InputError: the settings are none of which the networks can be built.
    """
    try:
        return _BUILDERS[stage](configuration)
    except (TypeError, ValueError) as error:  # of the networks' constructors, for options that they do not know
        raise InputError(f"The stage '{stage}' cannot be built from these settings: {error}.") from error


def _segmenter(configuration: dict[str, Any]) -> Stage:
    return Stage(build_segmenter(configuration["segmenter"]["width"]), segmenter_losses, _show_segmentation)


def _autoencoder(configuration: dict[str, Any]) -> Stage:
    options = dict(configuration["autoencoder"])
    kind = options.pop("perceptual")
    del options["optimizer_steps"]
    learned = options["perceptual_weight"] > 0 and kind == "segmenter"
    if learned:
        options["perceptual"] = SegmenterFeatures(build_segmenter(configuration["segmenter"]["width"]))
    elif options["perceptual_weight"]:
        from monai.losses import PerceptualLoss

        options["perceptual"] = PerceptualLoss(spatial_dims=3, network_type=kind, is_fake_3d="medicalnet" not in kind)
    if "perceptual" in options:
        options["perceptual"].to(configuration["device"]).requires_grad_(False).eval()
    first_stage = network_options(configuration)["first_stage"]
    model = build_autoencoder(first_stage, adversarial=options["adversarial_weight"] > 0)

    def take_over(run: Path, examples: Examples) -> None:
        if learned:
            segmenter = load_segmenter(run / "segmenter" / CHECKPOINT)
            options["perceptual"].segmenter = segmenter.to(configuration["device"])

    return Stage(model, partial(autoencoder_losses, **options), _show_reconstruction, take_over=take_over)


def _spade(configuration: dict[str, Any]) -> Stage:
    model = AldmTranslator(**translator_options("aldm", configuration))
    model.denoiser = None  # of the next stage
    model.first_stage.requires_grad_(False)
    weights = {key: value for key, value in configuration["spade"].items() if key.endswith("weight")}
    take_over = partial(load_first_stage, model, configuration, "spade")
    return Stage(model, partial(spade_losses, **weights), _show_target_like, [model.first_stage], take_over)


def _diffusion(configuration: dict[str, Any]) -> Stage:
    options = configuration["diffusion"]
    if not options["use_denoiser"]:
        raise InputError("Without a denoiser (diffusion.use_denoiser=false) this stage has nothing to train.")
    model = build_aldm(configuration)
    frozen = [model.first_stage, model.spade]
    for module in frozen:
        module.requires_grad_(False)
    if model.mode == "bridge":
        losses = partial(
            bridge_losses, **{key: options[key] for key in ("latent_weight", "image_weight", "start_share")}
        )
    else:
        losses = partial(diffusion_losses, weighting=options["weighting"])

    def take_over(run: Path, examples: Examples) -> None:
        if (run / "diffusion" / CHECKPOINT).exists():
            return
        if options["use_spade"]:
            _take(model.first_stage, run, "spade", "first_stage.")
            _take(model.spade, run, "spade", "spade.")
        else:
            load_first_stage(model, configuration, "diffusion", run, examples)
        model.to(configuration["device"])
        measure_spread(model, [examples(number) for number in _measured()])

    return Stage(model, losses, _show_translation, frozen, take_over)


def _regression(configuration: dict[str, Any]) -> Stage:
    model = RegressionTranslator(**translator_options("regression", configuration))
    model.first_stage.requires_grad_(False)
    weights = {key: value for key, value in configuration["regression"].items() if key.endswith("weight")}
    losses = partial(regression_losses, **weights)
    take_over = partial(load_first_stage, model, configuration, "regression")
    return Stage(model, losses, _show_translation, [model.first_stage], take_over)


_BUILDERS: dict[str, Callable[[dict[str, Any]], Stage]] = {
    "segmenter": _segmenter,
    "autoencoder": _autoencoder,
    "spade": _spade,
    "diffusion": _diffusion,
    "regression": _regression,
}


def _show_segmentation(model: nn.Module, pair: Pair) -> dict[str, torch.Tensor]:
    found = model(pair.image).argmax(dim=1, keepdim=True)
    return {pair.target: pair.image, "segmentation": found / (len(CLASSES) - 1) * 2 - 1}


def _show_reconstruction(model: nn.ModuleDict, pair: Pair) -> dict[str, torch.Tensor]:
    stage = model["first_stage"]
    return {pair.target: pair.image, "reconstruction": stage.decode(stage.encode(pair.image))}


def _show_target_like(model: AldmTranslator, pair: Pair) -> dict[str, torch.Tensor]:
    target_like = model.condition(model.encode(pair.sources), pair.target)
    return pair.sources | {f"{pair.target}-like": model.decode(target_like), pair.target: pair.image}


def _show_translation(model: Translator, pair: Pair) -> dict[str, torch.Tensor]:
    condition = model.condition(model.encode(pair.sources), pair.target)
    generator = torch.Generator().manual_seed(0)
    latents = model.sample(
        condition, pair.target, steps=model.default_steps, generator=generator, on_step=lambda *_: None
    )
    return pair.sources | {f"synthetic {pair.target}": model.decode(latents), pair.target: pair.image}
