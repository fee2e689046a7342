"""``python -m MissingModalitySynthLib.worker``: reads messages from stdin, answers on stdout, logs to stderr."""

from .server import main

main()
