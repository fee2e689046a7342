"""What the module uses of Slicer's layout manager: the real layout and slice logics, without windows."""

import slicer
import vtk

_SIZE = (240, 240)  # of a view in pixels


class _SliceView:
    """A view that is never drawn; it stands for its window and the window's list of renderers too."""

    def __init__(self):
        self._renderer = vtk.vtkRenderer()

    def renderWindow(self):
        return self

    def GetRenderers(self):
        return self

    def GetFirstRenderer(self):
        return self._renderer

    def scheduleRender(self):
        pass


class _SliceWidget:
    def __init__(self, application_logic, node):
        self._logic, self._view = slicer.vtkMRMLSliceLogic(), _SliceView()
        self._logic.SetMRMLApplicationLogic(application_logic)
        self._logic.SetMRMLScene(application_logic.GetMRMLScene())
        self._logic.SetSliceNode(node)
        self._logic.ResizeSliceNode(*_SIZE)

    def sliceLogic(self):
        return self._logic

    def setMinimumWidth(self, pixels):
        pass

    def sliceView(self):
        return self._view


class LayoutManager:
    """Views come and go with the layout, as in the main window."""

    def __init__(self, application_logic):
        self._application_logic, self._widgets = application_logic, {}
        self._scene = application_logic.GetMRMLScene()
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(self._scene)

    def layoutLogic(self):
        return self._logic

    def sliceWidget(self, name):
        node = self._scene.GetSingletonNode(name, "vtkMRMLSliceNode")
        if node is None:
            return None
        known = self._widgets.get(name)
        if known is None or known.sliceLogic().GetSliceNode() is not node:
            self._widgets[name] = _SliceWidget(self._application_logic, node)
        return self._widgets[name]
