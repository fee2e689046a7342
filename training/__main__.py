"""``python -m training STAGE --config FILE --run FOLDER [key=value ...]``: train the networks, then make a package.

Stages, in the order in which they build on each other: segmenter (for the perceptual loss), autoencoder (where the
first stage is a learned one), spade, diffusion; regression needs the autoencoder alone. Then: export. ``simulate``
writes subjects to look at. ``torchrun --nproc-per-node N -m training STAGE --run-folder FOLDER ...`` trains on N
devices.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from MissingModalitySynthLib.errors import InputError, OutOfMemoryError, OutputError, SynthesisError

from . import distributed
from .configuration import ABLATIONS, SIMULATOR_OPTIONS, STAGES, load_configuration
from .export import export
from .simulated_subjects import write_subjects
from .stages import load_anatomies, run_stage


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "export", "simulate"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--config", type=Path, required=True, help="recipe, e.g. training/configs/micro-simulated.yaml")
    parser.add_argument("--ablation", choices=ABLATIONS, help="a row of ALDM Table 3")
    # torchrun takes --run for an abbreviation of an option of its own
    run_help = "folder of checkpoints and logs; a run found there goes on"
    parser.add_argument("--run", "--run-folder", type=Path, help=run_help)
    parser.add_argument("--max-minutes", type=float, help="stop after this time, with a checkpoint to resume from")
    parser.add_argument("--output", type=Path, help="export: the package to write; simulate: the folder to write")
    parser.add_argument("--cases", type=int, default=4, help="simulate: number of subjects")
    options = parser.parse_intermixed_args(arguments)
    if options.stage != "simulate" and options.run is None:
        parser.error(f"{options.stage} needs --run")
    if options.stage not in STAGES and options.output is None:
        parser.error(f"{options.stage} needs --output")
    try:
        configuration = load_configuration(options.config, options.overrides, options.ablation)
        if options.stage == "export":
            package = export(configuration, options.run, options.output)
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
            if configuration["device"].startswith("cuda") and not torch.cuda.is_available():
                raise InputError("PyTorch finds no CUDA device here: set device=cpu, or install its CUDA build.")
            configuration["device"] = distributed.start(configuration["device"])
            run_stage(options.stage, configuration, options.run, options.max_minutes)
    except (SynthesisError, FloatingPointError) as error:
        print(f"python -m training: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, SynthesisError) else 1
    except OSError as error:  # of the log, say on a full disk
        print(f"python -m training: error: A file cannot be read or written: {error}.", file=sys.stderr)
        return OutputError.exit_code
    except torch.OutOfMemoryError:
        print(
            "python -m training: error: The device has too little memory; try machine.gradient_checkpointing=true or "
            "smaller data.shapes.",
            file=sys.stderr,
        )
        return OutOfMemoryError.exit_code
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
