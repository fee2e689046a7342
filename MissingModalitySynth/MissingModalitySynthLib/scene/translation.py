"""Texts for the user in the language of Slicer, and unchanged where Slicer's translations do not exist."""

try:
    from slicer.i18n import tr as _
except ImportError:  # plain Python, and slicer-core without an application

    def _(text: str) -> str:
        return text


__all__ = ["_"]
