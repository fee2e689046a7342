"""The few named errors that the engine raises on purpose, each with a documented exit code.

The message of every error is one sentence that says what is wrong, with the file or volume named, and, where the user
can do something about it, what to do. Anything else that escapes is a defect of the program (exit code 1).
"""

from typing import Any


class SynthesisError(Exception):
    """Base of all errors that are meant for the user's eyes."""

    exit_code = 1


class InputError(SynthesisError):
    """A file, volume, modality or option that cannot be used."""

    exit_code = 3


class GeometryError(InputError):
    """Volumes whose grids cannot be used, or cannot be used together."""

    exit_code = 4


class ModelPackageError(SynthesisError):
    """A model package that is missing, damaged, tampered with, or unable to do what is asked."""

    exit_code = 5


class OutOfMemoryError(SynthesisError):
    """Neither the device nor the CPU has the memory that the volume needs."""

    exit_code = 6


class OutputError(SynthesisError):
    """A result that cannot be written: folder not writable, disk full."""

    exit_code = 7


class WorkerError(SynthesisError):
    """The process that computes died or does not answer."""

    exit_code = 8


class DivergenceError(SynthesisError):
    """Sampling that ran away from what an image can be; nothing is kept unless that was asked for.

    Args:
        step: the step at which it was found, counted from 1.
        steps: how many there were to be.
        last_good: latents of the target from before that step, a tensor; None if there are none.
    """

    exit_code = 9

    def __init__(self, step: int, steps: int, last_good: Any = None) -> None:
        advice = "choose more steps, another seed or another method"
        super().__init__(f"The sampling diverged at step {step} of {steps}; {advice}.")
        self.step, self.steps, self.last_good = step, steps, last_good


class Cancelled(SynthesisError):
    """The user stopped the run; nothing was kept."""

    exit_code = 130
