"""Stand-ins for the widgets of CTK and Slicer that the panel uses, with the properties, slots and signals they have.

``SIGNALS`` maps a signal's C++ signature to the attribute here, where Qt could not spell it.
"""

from typing import ClassVar

from PySide6.QtCore import Property, QEvent, QObject, QPoint, QSize, Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPalette, QPolygon
from PySide6.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QSizePolicy,
    QSlider,
    QVBoxLayout,
    QWidget,
)

_SLIDER_TICKS = 1000


class qMRMLWidget(QWidget):
    """Top-level widget that hands its scene on."""

    SIGNALS: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "_sceneChanged"}
    _sceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene):
        self._scene = scene
        self._sceneChanged.emit(scene)

    def mrmlScene(self):
        return self._scene


class ctkCollapsibleButton(QAbstractButton):
    """A bar that shows and hides the widgets in its layout."""

    contentsCollapsed = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed = False
        self.setCheckable(True)
        self.setChecked(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.MinimumExpanding, QSizePolicy.Policy.Preferred)
        self.toggled.connect(lambda checked: self.setCollapsed(not checked))
        self._measure()

    def _bar(self):
        return self.fontMetrics().height() + 8

    def _measure(self):
        self.setContentsMargins(0, self._bar(), 0, 0)

    def changeEvent(self, event):
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._measure()
        super().changeEvent(event)

    def sizeHint(self):
        inside = QSize(0, 0) if self._collapsed or self.layout() is None else self.layout().totalSizeHint()
        text = self.fontMetrics().horizontalAdvance(self.text().replace("&", "")) + self._bar() + 8
        return QSize(max(inside.width(), text), max(inside.height(), self._bar()))

    def minimumSizeHint(self):
        inside = QSize(0, 0) if self._collapsed or self.layout() is None else self.layout().totalMinimumSize()
        return QSize(inside.width(), max(inside.height(), self._bar()))

    def paintEvent(self, _event):
        painter = QPainter(self)
        palette = self.palette()
        bar = self.rect().adjusted(0, 0, -1, self._bar() - self.height())
        painter.fillRect(bar, palette.color(QPalette.ColorRole.Button))
        if self.hasFocus():
            painter.setPen(palette.color(QPalette.ColorRole.Highlight))
            painter.drawRect(bar)
        painter.setPen(palette.color(QPalette.ColorRole.ButtonText))
        middle, size = bar.center().y(), 4
        painter.setBrush(palette.color(QPalette.ColorRole.ButtonText))
        corners = [6, middle - size, 6, middle + size, 6 + size, middle]
        if not self._collapsed:
            corners = [4, middle - 2, 4 + 2 * size, middle - 2, 4 + size, middle + size - 2]
        painter.drawPolygon(QPolygon([QPoint(*corners[n : n + 2]) for n in (0, 2, 4)]))
        flags = Qt.TextFlag.TextShowMnemonic | Qt.AlignmentFlag.AlignVCenter
        painter.drawText(bar.adjusted(self._bar() - 4, 0, 0, 0), flags, self.text())

    def isCollapsed(self):
        return self._collapsed

    @Slot(bool)
    def setCollapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        for child in self.children():
            if isinstance(child, QWidget):
                child.setVisible(not collapsed)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def childEvent(self, event):
        if event.type() == QEvent.Type.ChildAdded and self._collapsed and isinstance(event.child(), QWidget):
            event.child().setVisible(False)
        super().childEvent(event)

    collapsed = Property(bool, isCollapsed, setCollapsed)


class ctkSliderWidget(QWidget):
    """A slider with a spin box for the same value."""

    valueChanged = Signal(float)
    SIGNALS: ClassVar = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider, self._spin = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        self._slider.setMaximum(_SLIDER_TICKS)
        self._slider.setMinimumWidth(40)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._spin)
        self.setFocusProxy(self._slider)
        self._slider.valueChanged.connect(self._slid)
        self._spin.valueChanged.connect(self._typed)

    def _slid(self, tick):
        low, high = self._spin.minimum(), self._spin.maximum()
        self._spin.setValue(low + (high - low) * tick / _SLIDER_TICKS)

    def _typed(self, value):
        low, high = self._spin.minimum(), self._spin.maximum()
        blocked = self._slider.blockSignals(True)
        self._slider.setValue(round(_SLIDER_TICKS * (value - low) / (high - low or 1)))
        self._slider.blockSignals(blocked)
        self.valueChanged.emit(value)

    def _set(name):
        setter = "set" + name[0].upper() + name[1:]
        return lambda self, value: getattr(self._spin, setter)(value)

    def _get(name):
        return lambda self: getattr(self._spin, name)()

    def setValue(self, value):
        self._spin.setValue(value)

    value = Property(float, _get("value"), setValue)
    minimum = Property(float, _get("minimum"), _set("minimum"))
    maximum = Property(float, _get("maximum"), _set("maximum"))
    singleStep = Property(float, _get("singleStep"), _set("singleStep"))
    decimals = Property(int, _get("decimals"), _set("decimals"))
    suffix = Property(str, _get("suffix"), _set("suffix"))

    def setSpinBoxVisible(self, visible):
        self._spin.setVisible(visible)

    spinBoxVisible = Property(bool, lambda self: not self._spin.isHidden(), setSpinBoxVisible)


class qMRMLSortFilterProxyModel(QObject):
    """What a combo box leaves out."""

    def __init__(self, parent, changed):
        super().__init__(parent)
        self._hidden, self._changed = [], changed

    def _hide(self, identifiers):
        self._hidden = list(identifiers)
        self._changed()

    hiddenNodeIDs = Property("QStringList", lambda self: self._hidden, _hide)


class qMRMLNodeComboBox(QWidget):
    """Chooses a node of some classes in the scene."""

    SIGNALS: ClassVar = {"currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged", "currentNodeChanged(bool)": "_has"}
    currentNodeChanged = Signal(object)
    _has = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._values = {"addEnabled": True, "removeEnabled": True, "editEnabled": False, "renameEnabled": False}
        self._values |= {"noneEnabled": False, "showHidden": False, "showChildNodeTypes": True}
        self._values |= {"selectNodeUponCreation": True, "noneDisplay": "None", "nodeTypes": []}
        self._scene, self._tags, self._closing = None, [], False
        self._attributes = []
        self._combo = QComboBox()
        self._combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self.setFocusProxy(self._combo)
        self._combo.currentIndexChanged.connect(self._chosen)
        self._last = ""
        self._model = qMRMLSortFilterProxyModel(self, self._refill)

    def sortFilterProxyModel(self):
        return self._model

    @Slot(str, str, str)
    def addAttribute(self, kind, name, value):
        self._attributes.append((kind, name, value))
        self._refill()

    def setMRMLScene(self, scene):
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        self._tags = []
        if scene is not None:
            events = {
                scene.NodeAddedEvent: lambda *_: self._refill(),
                scene.NodeRemovedEvent: lambda *_: self._refill(),
                scene.EndCloseEvent: lambda *_: self._refill(),
                scene.EndImportEvent: lambda *_: self._refill(),
                scene.EndBatchProcessEvent: lambda *_: self._refill(),
            }
            self._tags = [scene.AddObserver(event, call) for event, call in events.items()]
        self._refill()

    def mrmlScene(self):
        return self._scene

    def _matching(self):
        found = []
        if self._scene is None:
            return found
        for index in range(self._scene.GetNumberOfNodes()):
            node = self._scene.GetNthNode(index)
            kinds = self._values["nodeTypes"]
            exact = node.GetClassName() in kinds
            child = self._values["showChildNodeTypes"] and any(node.IsA(kind) for kind in kinds)
            if node.GetID() in self._model.hiddenNodeIDs:
                continue
            if any(node.IsA(kind) and node.GetAttribute(name) != value for kind, name, value in self._attributes):
                continue
            if (exact or child) and (self._values["showHidden"] or not node.GetHideFromEditors()):
                found.append(node)
        return found

    def _refill(self):
        if self._scene is not None and self._scene.IsBatchProcessing():
            return
        wanted = self._last
        nodes = self._matching()
        blocked = self._combo.blockSignals(True)
        self._combo.clear()
        if self._values["noneEnabled"]:
            self._combo.addItem(self._values["noneDisplay"], "")
        for node in nodes:
            self._combo.addItem(node.GetName(), node.GetID())
        position = self._combo.findData(wanted)
        if position < 0:
            position = 0 if self._combo.count() and not (wanted and self._values["noneEnabled"]) else -1
            position = 0 if self._values["noneEnabled"] else position
        self._combo.setCurrentIndex(position)
        self._combo.blockSignals(blocked)
        self._chosen()

    def _chosen(self, _index=0):
        chosen = self._combo.currentData() or ""
        if chosen == self._last:
            return
        self._last = chosen
        self.currentNodeChanged.emit(self.currentNode())
        self._has.emit(self.currentNode() is not None)

    def currentNode(self):
        chosen = self._combo.currentData()
        return self._scene.GetNodeByID(chosen) if self._scene is not None and chosen else None

    @Slot(object)
    def setCurrentNode(self, node):
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, identifier):
        position = self._combo.findData(identifier or "")
        if position >= 0 or not identifier:
            self._combo.setCurrentIndex(position)

    def nodeCount(self):
        return len(self._matching())

    def nodeFromIndex(self, index):
        return self._matching()[index]

    currentNodeID = Property(str, lambda self: self._combo.currentData() or "", setCurrentNodeID)

    def _property(kind, name):
        def write(self, value):
            self._values[name] = value
            self._refill()

        return Property(kind, lambda self: self._values[name], write)

    nodeTypes = _property("QStringList", "nodeTypes")
    noneEnabled = _property(bool, "noneEnabled")
    noneDisplay = _property(str, "noneDisplay")
    addEnabled = _property(bool, "addEnabled")
    removeEnabled = _property(bool, "removeEnabled")
    editEnabled = _property(bool, "editEnabled")
    renameEnabled = _property(bool, "renameEnabled")
    showHidden = _property(bool, "showHidden")
    showChildNodeTypes = _property(bool, "showChildNodeTypes")
    selectNodeUponCreation = _property(bool, "selectNodeUponCreation")


CTK = (ctkCollapsibleButton, ctkSliderWidget)
SLICER = (qMRMLWidget, qMRMLSortFilterProxyModel, qMRMLNodeComboBox)
