"""The stages: what each trains, on what, and which earlier stage it builds on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import nn

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.networks import spade as spade_network
from MissingModalitySynthLib.networks.first_stage import FirstStage
from MissingModalitySynthLib.networks.segmenter import Segmenter
from MissingModalitySynthLib.package_format import CHECKSUMS
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.translators import METHODS
from MissingModalitySynthLib.translators.aldm import AldmTranslator
from MissingModalitySynthLib.translators.base import Translator
from MissingModalitySynthLib.translators.midiffusion import MidiffusionTranslator
from MissingModalitySynthLib.translators.regression import RegressionTranslator

from .ablations import AblatedTranslator
from .autoencoder import autoencoder_losses, build_autoencoder
from .batches import Pair
from .checkpoint import averaged_weights, load_weights, with_prefix
from .classifier import TrainedClassifier, Views, classifier_losses
from .configuration import network_options, settings_of
from .examples import Examples, make_examples, make_views
from .loop import generator_at, train
from .losses import Terms, bridge_losses, diffusion_losses, regression_losses, spade_losses
from .midiffusion import midiffusion_losses, published_losses
from .pseudo_sources import pseudo_source
from .segmenter import SegmenterFeatures, load_segmenter, segmenter_losses
from .widening import widen

CHECKPOINT = "checkpoint.safetensors"
RECOMPUTED = (AEKLResBlock, DiffusionUNetResnetBlock, spade_network._ResidualBlock)
_MEASURED = 1 << 40  # the number of the first example that measures latents, after all that train
# methods of a package, by stage
METHOD_OF = {"regression": "regression", "spade": "aldm", "diffusion": "aldm", "midiffusion": "midiffusion"}
_ZERO_SHOT = (
    "mode",
    "spatial_dims",
    "steps",
    "start",
    "guidance",
    "guidance_range",
    "window",
    "bins",
    "conditioned",
)
VOXELS = {"kind": "haar", "levels": 0}  # what the regression works on, whatever the first stage of the others
_ABLATED = ("use_spade", "use_palette", "use_denoiser")


class Stage(NamedTuple):
    """What :func:`~.loop.train` needs to know of a stage; ``take_over`` loads what earlier stages have learned."""

    model: nn.Module
    losses: Callable[[nn.Module, Pair, torch.Generator], Terms]
    show: Callable[[nn.Module, Pair], dict[str, torch.Tensor]] | None
    frozen: Sequence[nn.Module] = ()
    take_over: Callable[[Path, Examples], None] = lambda run, examples: None


def run_stage(stage: str, configuration: dict[str, Any], run: Path, max_minutes: float | None = None) -> None:
    """Train one stage in the folder ``run/stage``, resuming its checkpoint where there is one.

    Raises:
        InputError: the stage has nothing to train, or an earlier one is missing or of other networks, or the crops do
            not suit the networks; and those of :func:`~.loop.train`.
    """
    torch.manual_seed(configuration["seed"])
    contrasts = configuration["segmenter"]["contrasts"] if stage == "segmenter" else None
    alone = configuration["midiffusion"]["targets"] if stage == "midiffusion" else None
    if stage == "classifier":
        examples = make_views(configuration, run)
    else:
        examples = make_examples(
            configuration, run, all_images=stage == "regression", contrasts=contrasts, targets_alone=alone
        )
    built = build_stage(stage, configuration)
    check_shapes(configuration["data"]["shapes"], built.model)
    built.take_over(run, examples)
    if configuration["initial"] and not (run / stage / CHECKPOINT).exists():
        begin_with(built.model, Path(configuration["initial"]), stage)
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


def begin_with(model: nn.Module, initial: Path, stage: str) -> None:
    """Load what a stage begins with: the averaged weights that another run, or a package, has of the same stage.

    The regression takes those of a narrower UNet too, see :func:`~.widening.widen`. The diffusion takes the denoiser
    alone, and zero-shot translation all but its segmenter; MS-SPADE, the first stage and the segmenter are those of its
    own run.

    Raises:
        InputError: there are no such weights, or they are of other networks.
    """
    if (initial / CHECKSUMS).exists():
        weights = {k: v.float() for k, v in load_package(initial).weights(METHOD_OF.get(stage, stage)).items()}
        weights = {name: tensor for name, tensor in weights.items() if name in model.state_dict()}
    elif (path := initial / stage / CHECKPOINT).exists():
        weights = averaged_weights(path)[0]
    else:
        raise InputError(f"'{initial}' ('initial') is neither a package nor a run that has trained '{stage}'.")
    taken_over = {"diffusion": ("first_stage.", "spade.", "spread"), "midiffusion": ("tissues.",)}.get(stage, ())
    own = model.state_dict()
    weights |= {name: tensor for name, tensor in own.items() if name.startswith(taken_over)}
    if stage == "regression" and any(weights[name].shape != own[name].shape for name in weights.keys() & own.keys()):
        try:
            weights = widen(weights, own, torch.Generator().manual_seed(torch.initial_seed()))
        except ValueError as error:
            raise InputError(f"'{initial}' holds weights of other networks than the recipe's. {error}") from error
    load_weights(model, weights, initial)


def check_shapes(shapes: Sequence[Sequence[int]], model: nn.Module) -> None:
    """Refuse crops that the networks of a stage cannot take."""
    smallest = 32 if isinstance(model, Segmenter) else 16
    if isinstance(model, MidiffusionTranslator) and model.mode == "guided":
        smallest = model.multiple
    multiple = model.multiple if isinstance(model, AldmTranslator) else 16
    if wrong := [shape for shape in shapes if any(size < smallest or size % multiple for size in shape)]:
        raise InputError(
            f"The sizes of 'data.shapes' must be multiples of {multiple} and {smallest} or more for this stage, not "
            f"{wrong[0]}."
        )


def translator_options(method: str, configuration: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a method's translator, as the package will hold them."""
    networks = network_options(configuration)
    options = {"modalities": list(configuration["modalities"]), "first_stage": networks["first_stage"]}
    if method == "regression":
        own = {
            key: configuration["regression"][key]
            for key in ("outlined", "mirrored", "t1_in_t1ce", "window", "brain_apart")
        }
        return options | {"first_stage": VOXELS, "unet": networks["regression"]} | own
    if method == "midiffusion":
        own = configuration["midiffusion"]
        unet = dict(networks["midiffusion"][own["mode"]])
        if own["mode"] == "guided":
            unet["tissues"] = configuration["segmenter"]["width"]  # whose weights it takes over
        chosen = {key: own[key] for key in _ZERO_SHOT}
        return {"modalities": list(own["targets"]), "first_stage": unet.pop("first_stage"), "unet": unet} | chosen
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
    if method in ("regression", "midiffusion"):
        stage, model = method, METHODS[method](**translator_options(method, configuration))
    else:
        stage = "diffusion"
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
        raise InputError(
            f"The stage '{stage}' cannot be built from these settings: {str(error).rstrip('.')}."
        ) from error


def _segmenter(configuration: dict[str, Any]) -> Stage:
    options = configuration["segmenter"]
    losses = partial(segmenter_losses, **{key: options[key] for key in ("class_weights", "made_up_share")})
    return Stage(Segmenter(options["width"]), losses, _show_segmentation)


def _autoencoder(configuration: dict[str, Any]) -> Stage:
    options = dict(configuration["autoencoder"])
    kind = options.pop("perceptual")
    del options["optimizer_steps"]
    learned = options["perceptual_weight"] > 0 and kind == "segmenter"
    if learned:
        options["perceptual"] = SegmenterFeatures(Segmenter(configuration["segmenter"]["width"]))
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
        kept = ("latent_weight", "image_weight", "lesion_weight", "start_share")
        losses = partial(bridge_losses, **{key: options[key] for key in kept})
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


def _classifier(configuration: dict[str, Any]) -> Stage:
    options = configuration["classifier"]
    model = TrainedClassifier(configuration["modalities"], options["width"])

    def take_over(run: Path, examples: Callable[[int], Views]) -> None:
        if not (run / "classifier" / CHECKPOINT).exists():
            model.measure([examples(number) for number in range(options["cases"])])

    return Stage(model, classifier_losses, None, take_over=take_over)


def _midiffusion(configuration: dict[str, Any]) -> Stage:
    options = configuration["midiffusion"]
    model = MidiffusionTranslator(**translator_options("midiffusion", configuration))
    if model.mode == "published":
        return Stage(model, published_losses, _show_zero_shot)
    kept = ("latent_weight", "image_weight", "hidden_share", "artefacts", "monotone_share")
    losses = partial(midiffusion_losses, **{key: options[key] for key in kept})
    frozen = [model.first_stage, model.tissues]
    for module in frozen:
        module.requires_grad_(False)

    def take_over(run: Path, examples: Examples) -> None:
        load_first_stage(model, configuration, "midiffusion", run, examples)
        if not (run / "midiffusion" / CHECKPOINT).exists():
            _take(model.tissues, run, "segmenter")

    return Stage(model, losses, _show_zero_shot, frozen, take_over)


_BUILDERS: dict[str, Callable[[dict[str, Any]], Stage]] = {
    "segmenter": _segmenter,
    "autoencoder": _autoencoder,
    "spade": _spade,
    "diffusion": _diffusion,
    "regression": _regression,
    "midiffusion": _midiffusion,
    "classifier": _classifier,
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


def _show_zero_shot(model: MidiffusionTranslator, pair: Pair) -> dict[str, torch.Tensor]:
    source = pseudo_source(pair.image, generator_at(0), labels=pair.labels)
    steps = min(model.default_steps, 10)  # as published, a step takes ten seconds of a core
    latents = model.sample(
        model.prepare(source), pair.target, steps=steps, generator=generator_at(1), on_step=lambda *_: None
    )
    return {"pseudo-source": source, f"synthetic {pair.target}": model.decode(latents), pair.target: pair.image}
