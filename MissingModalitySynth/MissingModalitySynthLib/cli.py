"""The command ``missing-modality-synth``: what it understands, and how it ends.

Nothing heavy is imported before the command line is understood; the commands are in ``cli_commands`` and
``cli_models``.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from . import __version__
from .cli_output import PROGRAM, Console, UsageError
from .errors import OutputError

_ABOUT = """\
Makes the MRI contrasts that a patient lacks (T1, T1ce, T2, FLAIR, PD) from those that were acquired, on the very same
grid. Everything it makes is SYNTHETIC and not for diagnosis. Nothing leaves this computer.
"""

_EPILOG = """\
examples:
  missing-modality-synth inspect patient7_t1.nii.gz
  missing-modality-synth synthesize --source T1=patient7_t1.nii.gz --target FLAIR
  missing-modality-synth COMMAND --help

exit codes:
    0  done
    1  unexpected error, a defect of the program (--debug shows where)
    2  the command line was not understood
    3  a file, volume, contrast or option that cannot be used
    4  grids that cannot be used, or cannot be used together
    5  a model package that is missing, damaged or unable to do what is asked
    6  not enough memory
    7  the output cannot be written: no permission, disk full, there already
    8  the process that computes died
    9  the sampling diverged
  130  stopped by Ctrl-C; nothing was kept
"""

_SYNTHESIZE = """\
Makes one file per target on the grid of the reference, named after it: patient7_t1_FLAIR_synthetic.nii.gz, and with
several samples their standard deviation beside it, patient7_t1_FLAIR_synthetic_sd.nii.gz. A JSON file of the same name,
and the header where the format allows, say how it was made. All files of a run appear when the last is complete, or
none. Their names go to stdout, everything else to stderr.
"""

_SYNTHESIZE_EPILOG = """\
examples:
  missing-modality-synth synthesize --source T1=patient7_t1.nii.gz --target FLAIR
  missing-modality-synth synthesize --source T1=t1.nii.gz T2=dicom/t2 --reference T2 --output-dir out --report
  missing-modality-synth synthesize --source t1.nii.gz --target T2,FLAIR --acquired FLAIR=flair.nii.gz --steps 4 --json
  missing-modality-synth synthesize --source other=swi.nii.gz --target T1 --method midiffusion
"""

_INSPECT_EPILOG = """\
examples:
  missing-modality-synth inspect patient7_t1.nii.gz
  missing-modality-synth inspect scans/*.nii.gz dicom/t1 --json
"""

_SEGMENT = """\
Makes one label map per volume on its own grid, named like patient7_t1_segmentation.nii.gz: 1 CSF, 2 grey, 3 white, 4
deep grey matter, 5 lesion, with a JSON file of the same name. Of several volumes, each is compared with the
first: Dice by tissue.
"""

_SEGMENT_EPILOG = """\
examples:
  missing-modality-synth segment patient7_t1.nii.gz
  missing-modality-synth segment flair.nii.gz patient7_t1_FLAIR_synthetic.nii.gz --output-dir out --json
"""

_MODELS_EPILOG = """\
examples:
  missing-modality-synth models list
  missing-modality-synth models show micro
  missing-modality-synth models install downloads/hospital.zip
"""

_REPORT_EPILOG = """\
examples:
  missing-modality-synth report --source T1=t1.nii.gz --synthetic t1_T2_synthetic.nii.gz --output t2.html
  missing-modality-synth report --source T1=t1.nii.gz --synthetic T2=made.nrrd --acquired T2=t2.nrrd --output t2.html
"""

_SOURCE_HELP = (
    "acquired volume and what it shows, like T1=file; the contrast may be left out where the file's name or DICOM tags "
    "tell it; other=file for an unknown or any other contrast, which zero-shot methods take; NIfTI, NRRD, MHA or the "
    "folder of a DICOM series (folder#UID if it holds several)"
)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; what it parses has ``run``, the module and the name of the function to call."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object per line, for programs")
    common.add_argument("--debug", action="store_true", help="print the traceback of an error")

    parser = _Parser(prog=PROGRAM, description=_ABOUT, epilog=_EPILOG)
    parser.add_argument("-V", "--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: str, summary: str, description: str = "", epilog: str = "", to=commands) -> _Parser:
        command = to.add_parser(
            name,
            help=summary,
            description=description or f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            parents=[common],
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "synthesize", "cli_commands.synthesize", "make the contrasts that are missing", _SYNTHESIZE, _SYNTHESIZE_EPILOG
    )
    several = {"action": "extend", "nargs": "+"}
    command.add_argument("--source", **several, required=True, metavar="T1=FILE", help=_SOURCE_HELP)
    command.add_argument(
        "--target", **several, metavar="FLAIR", help="contrast to make; all that the package can make by default"
    )
    command.add_argument(
        "--reference", metavar="T1", help="the source on whose grid the results are (default: the first)"
    )
    command.add_argument(
        "--package", default="micro", metavar="NAME", help="model package, by name or folder (default: micro)"
    )
    command.add_argument(
        "--method",
        help="one of the package's methods, see models show (default: the package's, or midiffusion where only that "
        "takes the source's contrast)",
    )
    command.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the method's)")
    command.add_argument(
        "--samples", type=int, default=1, metavar="N", help="average of so many samples, and their standard deviation"
    )
    command.add_argument(
        "--keep-last-good", action="store_true", help="where sampling diverges, keep the last good estimate"
    )
    command.add_argument(
        "--no-shading", action="store_true", help="do not give results the shading of coils that their sources have"
    )
    command.add_argument(
        "--whole-head", action="store_true", help="synthesize a head with its skull in one, not its brain apart"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same result (default: 0)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    command.add_argument(
        "--output-dir", default=".", metavar="FOLDER", help="made if absent (default: the current one)"
    )
    command.add_argument(
        "--format", choices=("nii.gz", "nii", "nrrd", "mha"), help="default: the reference's; nii.gz for DICOM"
    )
    command.add_argument("--report", action="store_true", help="also write a page and a picture that compare them")
    command.add_argument(
        "--acquired", **several, default=[], metavar="FLAIR=FILE", help="what a target should look like, for --report"
    )
    command.add_argument("--overwrite", action="store_true", help="replace existing files")
    command.add_argument("--quiet", action="store_true", help="neither progress bar nor remarks")

    command = add(
        "inspect", "cli_commands.inspect", "show what a file holds and what can be made from it", epilog=_INSPECT_EPILOG
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="image file or folder of a DICOM series")

    command = add(
        "segment", "cli_segment.segment", "tell the tissues of volumes, and compare them", _SEGMENT, _SEGMENT_EPILOG
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="image file or folder of a DICOM series")
    command.add_argument(
        "--package", default="micro", metavar="NAME", help="model package with a segmenter (default: micro)"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    command.add_argument(
        "--output-dir", default=".", metavar="FOLDER", help="made if absent (default: the current one)"
    )
    command.add_argument("--format", choices=("nii.gz", "nii", "nrrd", "mha"), help="default: that of each file")
    command.add_argument("--overwrite", action="store_true", help="replace existing files")
    command.add_argument("--quiet", action="store_true", help="neither progress bar nor remarks")

    command = add(
        "report",
        "cli_commands.report",
        "compare existing volumes on a page (HTML) and a picture (PNG)",
        "",
        _REPORT_EPILOG,
    )
    command.add_argument("--source", **several, default=[], metavar="T1=FILE", help=_SOURCE_HELP)
    command.add_argument("--synthetic", **several, required=True, metavar="T2=FILE", help="what was made")
    command.add_argument(
        "--acquired",
        **several,
        default=[],
        metavar="T2=FILE",
        help="what it should look like: adds differences, metrics",
    )
    command.add_argument("--output", required=True, metavar="FILE.html", help="the page; the picture lies beside it")
    command.add_argument("--overwrite", action="store_true", help="replace existing files")

    models = commands.add_parser(
        "models",
        help="list, show, verify, install and remove model packages",
        description="Model packages: those that came with the program and those that you installed.",
        epilog=_MODELS_EPILOG,
    ).add_subparsers(metavar="COMMAND", required=True)
    add("list", "cli_models.list_models", "list all packages, damaged ones with their problem", to=models)
    command = add("show", "cli_models.show_model", "show what a package is made for and what it cannot do", to=models)
    command.add_argument("package", metavar="NAME", help="name or folder")
    command = add("verify", "cli_models.verify_model", "compare every file of a package with its checksum", to=models)
    command.add_argument("package", metavar="NAME", help="name or folder")
    command = add("install", "cli_models.install_model", "install a package from a folder or zip file", to=models)
    command.add_argument("path", metavar="PATH")
    command.add_argument("--replace", action="store_true", help="put it in the place of the one of that name")
    command = add("remove", "cli_models.remove_model", "remove an installed package", to=models)
    command.add_argument("package", metavar="NAME")

    add("devices", "cli_models.devices", "list what --device may name on this machine")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, those of the process by default.

    Returns:
        The exit code, see ``errors`` and ``--help``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any file name can be printed anywhere
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = build_parser().parse_args(argv)
    except UsageError as error:
        return Console(as_json="--json" in argv).error(error)
    module, _, name = arguments.run.partition(".")
    console = Console(as_json=arguments.json, quiet=getattr(arguments, "quiet", False), debug=arguments.debug)
    try:
        with stop_signals(graceful=name in ("synthesize", "segment")) as cancelled:
            command = getattr(import_module(f".{module}", __package__), name)
            return command(arguments, console, cancelled) or 0
    except BrokenPipeError:  # whoever read stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OutputError.exit_code
    except (Exception, KeyboardInterrupt) as error:  # the outermost boundary: every error ends as one sentence
        return console.error(error)
    finally:
        console.close()


@contextmanager
def stop_signals(*, graceful: bool) -> Iterator[Callable[[], bool]]:
    """While the block runs, Ctrl-C and SIGTERM stop it.

    Args:
        graceful: the first signal only makes the function that the block is given return True, so that a run can stop
            at its next step; the second raises KeyboardInterrupt. Otherwise the first one does.
    """
    asked = threading.Event()

    def handle(signum, frame) -> None:
        if asked.is_set() or not graceful:
            raise KeyboardInterrupt
        asked.set()
        if os.isatty(2):
            os.write(2, b"\nStopping at the next step; Ctrl-C again stops at once.\n")  # print is not safe in here

    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # only the main thread may; whoever runs this in another one cannot press Ctrl-C there
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # ignored on purpose, like Ctrl-C for a shell's background jobs
                signal.signal(number, handle)
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
