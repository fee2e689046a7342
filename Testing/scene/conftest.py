"""A real MRML scene with the logics that Slicer has, from slicer-core, and small scans of a head to put into it."""

from types import SimpleNamespace

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy


class _Complaints(vtk.vtkOutputWindow):
    """Collects what VTK and MRML would print."""

    def __init__(self):
        self.errors = []
        self.AddObserver("ErrorEvent", self._keep)
        self.AddObserver("WarningEvent", self._keep)

    @vtk.calldata_type(vtk.VTK_STRING)
    def _keep(self, caller, event, text):
        self.errors.append(text)


@pytest.fixture(autouse=True)
def complaints():
    """The errors and warnings of VTK and MRML, which end no program by themselves: none may be left by a test.

    A test that provokes one on purpose calls ``complaints.clear()``.
    """
    shown, collected = vtk.vtkOutputWindow.GetInstance(), _Complaints()
    vtk.vtkOutputWindow.SetInstance(collected)
    yield collected.errors
    vtk.vtkOutputWindow.SetInstance(shown)
    assert collected.errors == []


@pytest.fixture
def application(tmp_path):
    """What Slicer's own application holds: ``scene`` and the logics ``application``, ``colors``, ``volumes``,
    ``segmentations``, ``transforms``; the scene can save and load MRB files."""
    scene = slicer.vtkMRMLScene()
    cache, data_io = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    (tmp_path / "cache").mkdir()
    (tmp_path / "share" / "ColorFiles").mkdir(parents=True)  # where Slicer has colour files beside its own colours
    cache.SetRemoteCacheDirectory(str(tmp_path / "cache"))
    cache.SetMRMLScene(scene)
    data_io.SetCacheManager(cache)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(data_io)

    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetTemporaryPath(str(tmp_path))
    logic.SetHomeDirectory(str(tmp_path))
    logic.SetShareDirectory("share")
    logics = {
        "Colors": slicer.vtkSlicerColorLogic(),
        "Volumes": slicer.vtkSlicerVolumesLogic(),
        "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
        "Transforms": slicer.vtkSlicerTransformLogic(),
        "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic(),
    }
    for name, module in logics.items():
        logic.SetModuleLogic(name, module)
        module.SetMRMLApplicationLogic(logic)
    logic.SetMRMLScene(scene)
    for module in logics.values():
        module.SetMRMLScene(scene)
    yield SimpleNamespace(
        scene=scene,
        application=logic,
        colors=logics["Colors"],
        volumes=logics["Volumes"],
        segmentations=logics["Segmentations"],
        transforms=logics["Transforms"],
        io=data_io,
    )
    scene.Clear(True)


@pytest.fixture
def scene(application):
    """The scene of ``application``."""
    return application.scene


@pytest.fixture
def hierarchy(scene):
    """The subject hierarchy node of ``scene``."""
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def head(size, seed=0, dtype=np.float32):
    """A head of voxels [i, j, k]: an ellipsoid with bright and dark parts in air, 0 to about 1000."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    radius = np.sqrt((i / 0.7) ** 2 + (j / 0.8) ** 2 + (k / 0.75) ** 2)
    tissue = 500 + 250 * np.sin(5 * i + seed) * np.cos(4 * j - seed) + 200 * (np.hypot(i - 0.2, j + 0.1) < 0.25)
    return np.where(radius < 1, tissue, 0).astype(dtype)


OBLIQUE = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))


@pytest.fixture
def add_scan(scene, hierarchy):
    """Function: name, array [i, j, k] or size, spacing, origin and directions (RAS) -> scalar volume node.

    With a display node, as loaded in Slicer, and an item in the subject hierarchy under ``parent`` (the scene's item
    where left out).
    """

    def add(
        name="T1",
        array=(20, 24, 18),
        spacing=(1.0, 1.25, 1.5),
        origin=(-9.0, 11.0, -12.0),
        directions=OBLIQUE,
        parent=None,
    ):
        voxels = np.asarray(array) if np.ndim(array) == 3 else head(array)
        image = vtk.vtkImageData()
        image.SetDimensions(voxels.shape)
        image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(order="F"), deep=True))
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        node.SetAndObserveImageData(image)
        node.SetSpacing(spacing)
        node.SetOrigin(origin)
        node.SetIJKToRASDirections(*np.ravel(directions))
        node.CreateDefaultDisplayNodes()
        if hierarchy.GetItemByDataNode(node) == 0:
            hierarchy.CreateItem(parent or hierarchy.GetSceneItemID(), node, "Volumes")
        return node

    return add


@pytest.fixture
def add_transform(scene):
    """Function: name, 4x4 matrix (RAS, to parent) or None for a grid (non-linear) transform -> transform node."""

    def add(name="moved", matrix=None):
        if matrix is None:
            grid = vtk.vtkImageData()
            grid.SetDimensions(5, 5, 5)
            grid.SetSpacing(20, 20, 20)
            grid.SetOrigin(-40, -40, -40)
            shifts = 3 * np.random.default_rng(0).standard_normal((125, 3))
            grid.GetPointData().SetScalars(numpy_to_vtk(shifts, deep=True))
            transform = slicer.vtkOrientedGridTransform()
            transform.SetDisplacementGridData(grid)
            transform.SetInterpolationModeToCubic()
            node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", name)
            node.SetAndObserveTransformFromParent(transform)
        else:
            node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
            node.SetMatrixTransformToParent(matrix_of(matrix))
        return node

    return add


def matrix_of(array):
    """The vtkMatrix4x4 of an array (4, 4)."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.ravel(array))
    return matrix


def array_of(matrix):
    """The array (4, 4) of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def ijk_to_ras(node):
    """IJKToRAS of a volume node, as an array (4, 4)."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return array_of(matrix)


def voxels_of(node):
    """The voxels of a volume node, indexed [i, j, k]."""
    image = node.GetImageData()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions(), order="F")
