"""Engine of MissingModalitySynth: synthesizes missing MRI contrasts from the acquired ones.

The engine knows neither Qt nor 3D Slicer. Importing this package imports nothing heavy: torch and MONAI are
loaded by the modules that compute (``networks``, ``diffusion``, ``translators``, ``synthesis``).
"""

__version__ = "0.1.0"

# Stands in the name, the file and the picture of everything that was not measured.
NOTICE = "SYNTHETIC, not for diagnosis"
