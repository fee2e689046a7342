"""``python -m training STAGE --config FILE --run FOLDER [key=value ...]``: train the networks, then make a package.

Stages, in the order in which they build on each other: segmenter (for the perceptual loss), autoencoder (where the
first stage is a learned one), spade, diffusion; regression needs the autoencoder alone, midiffusion and classifier
nothing. Then: export. ``simulate`` writes subjects to look at. ``torchrun --nproc-per-node N -m training STAGE
--run-folder FOLDER ...`` trains on N devices.

``evaluate`` scores a run's networks, or a package (``--package NAME_OR_FOLDER``), on a folder of subjects
(``--subjects FOLDER``), on the test split of the recipe's scans, or on simulated heads where it has none::

    python -m training evaluate --config FILE --run FOLDER --output FOLDER
    python -m training evaluate --package micro --subjects FOLDER --output FOLDER --robustness
    python -m training evaluate --package micro --package SUBJECT=FOLDER --subjects FOLDER --output FOLDER
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from MissingModalitySynthLib.device import available_devices, is_out_of_memory
from MissingModalitySynthLib.errors import Cancelled, InputError, OutOfMemoryError, OutputError, SynthesisError

from . import distributed
from .configuration import ABLATIONS, SIMULATOR_OPTIONS, STAGES, load_configuration
from .evaluation import command as evaluation
from .examples import load_anatomies
from .export import export
from .simulated_subjects import write_subjects
from .stages import run_stage


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "evaluate", "export", "simulate"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--config", type=Path, help="recipe, e.g. training/configs/micro-simulated.yaml")
    parser.add_argument("--ablation", choices=ABLATIONS, help="a row of ALDM Table 3")
    # torchrun takes --run for an abbreviation of an option of its own
    run_help = "folder of checkpoints and logs; a run found there goes on"
    parser.add_argument("--run", "--run-folder", type=Path, help=run_help)
    parser.add_argument("--max-minutes", type=float, help="stop after this time, with a checkpoint to resume from")
    parser.add_argument("--output", type=Path, help="export: the package; evaluate, simulate: the folder to write")
    parser.add_argument("--cases", type=int, default=4, help="evaluate, simulate: number of simulated subjects")
    zero_shot_help = "export: the run of midiffusion, where that is not --run"
    parser.add_argument("--zero-shot", type=Path, metavar="RUN", help=zero_shot_help)
    keep_help = "export: a package whose zero-shot method, segmenter and classifier are kept where no run has another"
    parser.add_argument("--keep", metavar="NAME_OR_FOLDER", help=keep_help)
    evaluation_help = "export: an evaluation.json whose results the model card gets; again and again"
    parser.add_argument("--evaluation", type=Path, action="append", default=[], help=evaluation_help)
    evaluation.add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    _check(options, parser)
    try:
        # without a recipe: the defaults, which overrides may change
        configuration = load_configuration(options.config or Path(os.devnull), options.overrides, options.ablation)
        if options.stage == "evaluate":
            print(evaluation.run(options, configuration))
            print(f"Wrote '{options.output}'.", file=sys.stderr)
        elif options.stage == "export":
            package = export(
                configuration,
                options.run,
                options.output,
                zero_shot=options.zero_shot,
                keep=options.keep,
                evaluations=options.evaluation,
            )
            print(f"Wrote '{package.path}', methods {', '.join(package.methods)}.")
        elif options.stage == "simulate":
            data = configuration["data"]
            write_subjects(
                load_anatomies(data["anatomies"]),
                options.output,
                cases=options.cases,
                shape=tuple(data["shapes"][0]),
                modalities=configuration["modalities"],
                seed=configuration["seed"],
                **{key: data[key] for key in SIMULATOR_OPTIONS},
            )
            print(f"Wrote {options.cases} subjects to '{options.output}'.")
        else:
            _check_device(configuration["device"])
            configuration["device"] = distributed.start(configuration["device"])
            run_stage(options.stage, configuration, options.run, options.max_minutes)
    except (SynthesisError, FloatingPointError) as error:
        print(f"python -m training: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, SynthesisError) else 1
    except OSError as error:  # of the log, say on a full disk
        print(f"python -m training: error: A file cannot be read or written: {error}.", file=sys.stderr)
        return OutputError.exit_code
    except ModuleNotFoundError as error:
        print(
            f"python -m training: error: The Python package '{error.name}' is missing: pip install nibabel nilearn "
            "PyYAML tensorboard.",
            file=sys.stderr,
        )
        return InputError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            "python -m training: error: The device has too little memory; try machine.gradient_checkpointing=true or "
            "smaller data.shapes.",
            file=sys.stderr,
        )
        return OutOfMemoryError.exit_code
    except KeyboardInterrupt:
        print("python -m training: Cancelled; a run goes on from its last checkpoint.", file=sys.stderr)
        return Cancelled.exit_code
    finally:
        distributed.stop()
    return 0


def _check_device(name: str) -> None:
    """Refuse a device that this machine does not have."""
    devices = available_devices()
    if name.startswith("cuda") and not devices[0].startswith("cuda"):
        raise InputError("PyTorch finds no CUDA device here: set device=cpu, or install its CUDA build.")
    if name not in (*devices, *["cuda"] * devices[0].startswith("cuda")):
        raise InputError(f"This machine has no device '{name}'; choose one of {', '.join(devices)}.")


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with one sentence where options are missing or belong to another command."""
    stage, evaluate = options.stage, options.stage == "evaluate"
    if not evaluate and (foreign := evaluation.given(options)):
        parser.error(f"{foreign[0]} belongs to evaluate, not to {stage}")
    for name, value in (
        ("--evaluation", options.evaluation),
        ("--zero-shot", options.zero_shot),
        ("--keep", options.keep),
    ):
        if value and stage != "export":
            parser.error(f"{name} belongs to export, not to {stage}")
    if options.config is None and not (evaluate and options.package and options.subjects):
        parser.error(f"{stage} needs --config" + (", or --package and --subjects" if evaluate else ""))
    if evaluate and options.run is None and options.package is None:
        parser.error("evaluate needs --run or --package")
    if options.cases < 1 or (options.samples is not None and options.samples < 1):
        parser.error(f"{stage} needs --cases and --samples of 1 or more")
    if stage in STAGES and options.output is not None:
        parser.error(f"--output belongs to evaluate, export and simulate, not to {stage}: use --run")
    if stage not in ("simulate", "evaluate") and options.run is None:
        parser.error(f"{stage} needs --run")
    if stage not in STAGES and options.output is None:
        parser.error(f"{stage} needs --output")


if __name__ == "__main__":
    sys.exit(main())
