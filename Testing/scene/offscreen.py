"""Slice views without a window system: the logics behind them, and pictures of what they show.

``picture`` needs no OpenGL: it is the composed slice that Slicer's slice logic computes. ``screenshot`` draws a view as
Slicer does, with outlines, crosshair and texts, by any OpenGL that VTK finds (EGL of Mesa on a machine without a GPU).
"""

import ctypes.util
import os

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

# What VTK loads for drawing without a window system; Debian and Ubuntu have it in these packages.
OPENGL_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri")
if "DISPLAY" not in os.environ:  # else VTK tries X first, and warns
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLCrosshairDisplayableManager")


def need_opengl():
    """Skip the test where nothing can be drawn; where tests run unattended, nothing may be skipped."""
    if "DISPLAY" in os.environ or ctypes.util.find_library("EGL"):
        return
    sentence = f"Drawing needs OpenGL: apt-get install {' '.join(OPENGL_PACKAGES)}"
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


class OffscreenViews:
    """The views of a layout, as ``slicer_views.Views`` asks for them.

    Args:
        application: the application logic, with its scene.
        size: width and height of a view in pixels.
    """

    def __init__(self, application, size=(96, 96)):
        self.scene, self.size = application.GetMRMLScene(), size
        self._application = application
        self._layout = slicer.vtkMRMLLayoutLogic()
        self._layout.SetMRMLScene(self.scene)
        self.layout_node = self._layout.GetLayoutNode()
        self._link = slicer.vtkMRMLSliceLinkLogic()
        self._link.SetMRMLScene(self.scene)
        self._logics, self._renderers, self._windows, self._groups = {}, {}, {}, {}
        self.renders, self.callbacks, self.narrow = [], [], set()

    def slice_logic(self, name):
        node = self.scene.GetSingletonNode(name, "vtkMRMLSliceNode")
        if node is None:
            return None
        if name not in self._logics:
            logic = self._logics[name] = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(self._application)
            logic.SetMRMLScene(self.scene)
            logic.SetSliceNode(node)
            logic.ResizeSliceNode(*self.size)
            self._renderers[name] = vtk.vtkRenderer()
        return self._logics[name]

    def renderer(self, name):
        return self._renderers[name] if self.slice_logic(name) else None

    def render(self, name):
        self.renders.append(name)

    def allow_narrow(self, name):
        self.narrow.add(name)

    def when_laid_out(self, callback):
        self.callbacks.append(callback)

    def composite(self, name):
        return self.slice_logic(name).GetSliceCompositeNode()

    def node(self, name):
        return self.slice_logic(name).GetSliceNode()

    @property
    def own_nodes(self):
        """IDs of the nodes that the views themselves keep in the scene."""
        kinds = ("", "Composite", "Display", "ModelDisplay", "Model", "ModelTransform")
        return {getattr(logic, f"GetSlice{kind}Node")().GetID() for logic in self._logics.values() for kind in kinds}

    @property
    def mapped(self):
        """Names of the views that the layout shows."""
        nodes = self._layout.GetViewNodes()
        return [nodes.GetItemAsObject(number).GetName() for number in range(nodes.GetNumberOfItems())]

    def picture(self, name):
        """The composed slice, rows from top to bottom: uint8 (height, width, 3), on black."""
        connection = self.slice_logic(name).GetImageDataConnection()
        if connection is None:
            return np.zeros((*self.size[::-1], 3), np.uint8)
        connection.GetProducer().Update()
        rgba = _pixels(connection.GetProducer().GetOutputDataObject(0)).astype(float)
        return np.rint(rgba[..., :3] * rgba[..., 3:] / 255).astype(np.uint8)

    def screenshot(self, name):
        """The view as it is drawn, rows from top to bottom: uint8 (height, width, 3)."""
        window = self._window(name)
        window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(window)
        grab.ReadFrontBufferOff()
        grab.Update()
        return _pixels(grab.GetOutput())

    def _window(self, name):
        if name not in self._windows:
            renderer = self.renderer(name)
            window = self._windows[name] = vtk.vtkRenderWindow()
            window.SetOffScreenRendering(True)
            window.SetMultiSamples(0)
            window.SetSize(*self.size)
            window.AddRenderer(renderer)
            interactor = vtk.vtkGenericRenderWindowInteractor()
            interactor.SetRenderWindow(window)
            # As ctkVTKSliceView and qMRMLSliceView do
            mapper = vtk.vtkImageMapper()
            mapper.SetColorWindow(255)
            mapper.SetColorLevel(127.5)
            mapper.SetInputConnection(self.slice_logic(name).GetImageDataConnection())
            image = vtk.vtkActor2D()
            image.SetMapper(mapper)
            image.GetProperty().SetDisplayLocationToBackground()
            renderer.AddViewProp(image)
            factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
            factory.SetMRMLApplicationLogic(self._application)
            for manager in MANAGERS:
                if not factory.IsDisplayableManagerRegistered(manager):
                    factory.RegisterDisplayableManager(manager)
            group = self._groups[name] = factory.InstantiateDisplayableManagers(renderer)
            group.SetMRMLDisplayableNode(self.node(name))
        return self._windows[name]


def _pixels(image):
    width, height, _ = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1]
