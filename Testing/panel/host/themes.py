"""Slicer's two themes, and pictures of a widget in them."""

from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory, QWidget

# Window, WindowText, Base, Text, Button, ButtonText, Highlight, HighlightedText, disabled text
THEMES = {
    "light": ("#efefef", "#000000", "#ffffff", "#000000", "#dcdcdc", "#000000", "#308cc6", "#ffffff", "#808080"),
    "dark": ("#353535", "#ffffff", "#242424", "#ffffff", "#454545", "#ffffff", "#2a82da", "#ffffff", "#7f7f7f"),
}


def use(theme):
    """Give the application a theme's style and colours."""
    colors = [QColor(name) for name in THEMES[theme]]
    palette = QPalette()
    roles = ("Window", "WindowText", "Base", "Text", "Button", "ButtonText", "Highlight", "HighlightedText")
    for role, color in zip(roles, colors, strict=False):
        palette.setColor(QPalette.ColorRole[role], color)
    palette.setColor(QPalette.ColorRole.ToolTipBase, colors[2])
    palette.setColor(QPalette.ColorRole.ToolTipText, colors[3])
    palette.setColor(QPalette.ColorRole.PlaceholderText, colors[8])
    for role in ("WindowText", "Text", "ButtonText"):
        palette.setColor(QPalette.ColorGroup.Disabled, QPalette.ColorRole[role], colors[8])
    QApplication.setStyle(QStyleFactory.create("Fusion"))
    QApplication.setPalette(palette)


def grab(wrapped, width):
    """A picture (QPixmap) of a widget at a width, as high as its content needs."""
    widget: QWidget = wrapped._qt
    layout = widget.layout()
    layout.activate()
    height = layout.totalHeightForWidth(width) if layout.hasHeightForWidth() else layout.totalSizeHint().height()
    widget.resize(width, height)
    QApplication.processEvents()
    layout.activate()
    return widget.grab()
