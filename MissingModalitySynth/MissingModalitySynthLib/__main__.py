"""``python -m MissingModalitySynthLib`` is the command ``missing-modality-synth``."""

import sys

from .cli import main

sys.exit(main())
