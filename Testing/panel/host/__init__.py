"""A small stand-in for Slicer's Python environment: PySide6 behind the manners of PythonQt, over a real MRML scene.

:func:`~.application.install` puts ``qt``, ``ctk`` and the missing parts of ``slicer`` in place, so that the module's
own file is imported and clicked exactly as Slicer would. ``slicer`` itself, with MRML, is the package slicer-core.
"""
