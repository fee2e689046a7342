"""The sections of the panel: they connect the widgets of the .ui file with ``scene/``, and decide nothing.

The only part of the library that handles widgets. They are handed in, so that nothing of Qt is imported here.
"""
