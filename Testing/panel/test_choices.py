"""What is chosen at first, what may be chosen, and why Synthesize cannot be pressed: over real MRML, without Qt."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import slicer
import slicer.util
import vtk

from MissingModalitySynthLib.errors import InputError, ModelPackageError
from MissingModalitySynthLib.modality import OTHER
from MissingModalitySynthLib.model_package import ListedPackage, load_package
from MissingModalitySynthLib.scene import choices
from MissingModalitySynthLib.scene.choices import OTHER_CHOICE, UNKNOWN, Choices
from MissingModalitySynthLib.scene.compare_choices import compared_with, comparison_of
from MissingModalitySynthLib.scene.estimates import MeasuredRuns
from MissingModalitySynthLib.scene.panel import view_of
from MissingModalitySynthLib.scene.provenance import mark, refer
from MissingModalitySynthLib.scene.session import Session, duration
from MissingModalitySynthLib.worker.jobs import DeviceInfo, WorkerInfo

CPU = DeviceInfo("cpu", "Some CPU", 16_000_000_000, works=True)
GPU = DeviceInfo("cuda:0", "Some GPU", 8_000_000_000, works=True)
BROKEN = DeviceInfo("cuda:1", "Old GPU", 2_000_000_000, works=False, reason="no kernel image")


class Client:
    """As much of a worker's client as the panel looks at."""

    state, info = "idle", None


@pytest.fixture
def scene():
    made = slicer.vtkMRMLScene()
    yield made
    made.Clear(True)


@pytest.fixture
def session():
    return Session(Client(), MeasuredRuns({}))


@pytest.fixture
def packages(tiny_package):
    return (
        ListedPackage("micro", load_package("micro").path, True, load_package("micro")),
        ListedPackage("tiny", tiny_package, False, load_package(tiny_package)),
    )


@pytest.fixture
def add(scene):
    def make(name, kind="vtkMRMLScalarVolumeNode", size=(20, 20, 20), components=1):
        node = scene.AddNewNodeByClass(kind, name)
        image = vtk.vtkImageData()
        image.SetDimensions(size)
        image.AllocateScalars(vtk.VTK_FLOAT, components)
        node.SetAndObserveImageData(image)
        return node

    return make


@pytest.fixture
def synthetic(scene, add):
    def make(name, target, source):
        node = add(name)
        mark(node, {"synthetic": True, "target": target, "reference": source.GetName(), "package": "micro"})
        refer(node, {"T1": source}, "T1")
        return node

    return make


@pytest.fixture
def view(scene, packages, session):
    return lambda chosen: view_of(scene, chosen, packages, session)


def test_the_only_mri_is_chosen_with_its_contrast(scene, add):
    node = add("patient7_t1w")
    assert choices.default_sources(scene) == [(node, "T1")]


def test_nothing_is_chosen_in_an_empty_scene(scene):
    assert choices.default_sources(scene) == []


def test_what_is_no_acquired_scan_is_never_chosen(scene, add, synthetic):
    source = add("T1")
    synthetic("T2 (synthetic from T1)", "T2", source)
    add("T2 labels", "vtkMRMLLabelMapVolumeNode")
    add("T2 vector", "vtkMRMLVectorVolumeNode", components=3)
    add("T2 colour", components=3)
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T2 without voxels")
    hidden = add("T2 helper")
    hidden.SetHideFromEditors(True)
    assert choices.acquired_volumes(scene) == [source]
    scene.RemoveNode(source)
    assert choices.default_sources(scene) == []


def test_a_known_contrast_comes_before_the_active_volume_and_that_before_the_others(scene, add):
    selection = scene.AddNode(slicer.vtkMRMLSelectionNode())
    add("first")
    active = add("second")
    selection.SetActiveVolumeID(active.GetID())
    assert choices.default_sources(scene) == [(active, UNKNOWN)]
    known = add("third FLAIR")
    assert choices.default_sources(scene) == [(known, "FLAIR")]


def test_dicom_attributes_tell_the_contrast_that_the_name_does_not(scene, add):
    node = add("Series 3")
    found = choices.default_sources(scene, lambda _node: {"Modality": "MR", "SeriesDescription": "T2 FLAIR axial"})
    assert found == [(node, "FLAIR")]


def test_a_new_volume_is_guessed_and_a_corrected_one_stays(add):
    first, second = add("a T1"), add("b T2")
    assert choices.settled_sources([(first, "PD"), (second, UNKNOWN)], {first.GetID(): "PD"}) == [
        (first, "PD"),
        (second, "T2"),
    ]


def test_a_volume_that_takes_the_place_of_another_is_guessed_anew(add):
    first, second = add("a T1"), add("b T2")
    assert choices.settled_sources([(second, "T1")], {first.GetID(): "T1"}) == [(second, "T2")]


def test_choices_of_a_loaded_scene_are_kept(add):
    node = add("a T1")
    assert choices.settled_sources([(node, "PD")], {}) == [(node, "PD")]


def test_rows_close_ranks_and_a_volume_counts_once(scene, add):
    first, second, gone = add("T1"), add("T2"), add("FLAIR")
    scene.RemoveNode(gone)
    rows = [(None, UNKNOWN), (first, "T1"), (gone, "FLAIR"), (first, "T2"), (second, "T2")]
    assert choices.settled_sources(rows, {}) == [(first, "T1"), (second, "T2")]


def test_one_free_row_is_offered_until_there_are_four(view, add):
    nodes = [(add(name), name) for name in ("T1", "T1ce", "T2", "FLAIR")]
    assert [view(Choices(sources=tuple(nodes[:n]))).input_rows for n in range(5)] == [1, 2, 3, 4, 4]


def test_the_targets_are_what_the_package_makes_without_the_sources(view, add):
    chosen = Choices(sources=((add("T1"), "T1"), (add("PD"), "PD")))
    assert view(chosen).targets == ("T1ce", "T2", "FLAIR")
    assert view(replace(chosen, package="tiny")).targets == ("T2", "FLAIR")


def test_an_unknown_package_or_method_falls_back_to_the_default(view):
    shown = view(Choices(package="removed", method="removed"))
    assert (shown.package, shown.method) == ("micro", "regression")
    assert view(Choices(package="tiny")).method == "aldm"
    assert not shown.iterative
    assert view(Choices(package="tiny")).iterative


def test_synthesize_can_be_pressed_when_all_is_chosen(view, add):
    shown = view(Choices(sources=((add("T1"), "T1"),), targets=("T2", "FLAIR")))
    assert shown.can_start
    assert shown.reason == ""
    assert shown.button == "&Synthesize T2, FLAIR"
    assert "CPU" in shown.estimate


@pytest.mark.parametrize(
    ("sources", "targets", "options", "expected"),
    [
        ([], ["T2"], {}, "Load an MRI volume"),
        ([("T1", "T1")], [], {}, "Tick at least one"),
        ([("T1", "T1")], ["T1"], {}, "Tick at least one"),
        ([("head", UNKNOWN)], ["T2"], {}, "contrast of 'head' is not known"),
        ([("a", "T1"), ("b", "T1")], ["T2"], {}, "'a' and 'b' are both T1"),
        ([("flair", "FLAIR")], ["T2"], {"package": "tiny"}, "cannot start from FLAIR, only from T1, T2"),
        ([("T1", "T1")], ["T2"], {"device": "cuda:1"}, "Old GPU does not work (no kernel image)"),
    ],
)
def test_the_reason_says_what_is_lacking(view, session, add, sources, targets, options, expected):
    session.client.info = WorkerInfo("0", "3", 1, "2", (GPU, BROKEN, CPU))
    chosen = Choices(sources=tuple((add(name), known) for name, known in sources), targets=tuple(targets), **options)
    shown = view(chosen)
    assert expected in shown.reason
    assert not shown.can_start
    assert shown.estimate == ""


def test_a_synthetic_source_is_refused(view, add, synthetic):
    made = synthetic("T2 (synthetic from T1)", "T2", add("T1"))
    assert "is synthetic itself" in view(Choices(sources=((made, "T2"),), targets=("FLAIR",))).reason


def test_a_colour_volume_is_refused_with_its_name(view, add):
    assert "'colour'" in view(Choices(sources=((add("colour", components=3), "T1"),), targets=("T2",))).reason


def test_a_damaged_package_is_shown_with_its_problem(scene, session, tmp_path):
    damaged = ListedPackage("mine", tmp_path, False, problem='The model package "mine" is damaged; reinstall it.')
    shown = view_of(scene, Choices(), (damaged,), session)
    assert "cannot be used" in shown.packages[0].text
    assert shown.reason == damaged.problem
    assert shown.targets == ()


def test_without_a_package_nothing_can_be_done(scene, session):
    assert "install a model package" in view_of(scene, Choices(), (), session).reason


def test_automatic_and_the_cpu_are_offered_at_once_and_each_gpu_when_the_worker_has_told(view, session):
    assert [each.key for each in view(Choices()).devices] == ["auto", "cpu"]
    session.client.info = WorkerInfo("0", "3", 1, "2", (GPU, BROKEN, CPU))
    shown = view(Choices(device="cuda:0"))
    assert [each.key for each in shown.devices] == ["auto", "cuda:0", "cuda:1", "cpu"]
    assert shown.device == "cuda:0"
    assert "8 GB" in shown.devices[1].text
    assert "does not work" in shown.devices[2].text
    assert view(Choices(device="cuda:7")).device == "auto"


def test_the_estimate_is_for_the_first_device_that_works(view, session, add):
    session.client.info = WorkerInfo("0", "3", 1, "2", (BROKEN, GPU, CPU))
    assert "on the GPU" in view(Choices(sources=((add("T1"), "T1"),), targets=("T2",))).estimate


def test_the_start_of_the_worker_is_part_of_the_estimate_until_it_is_warm(view, session, add):
    chosen = Choices(sources=((add("T1"), "T1"),), targets=("T2",))
    seconds = {}
    for state in ("idle", "starting", "stopped"):
        session.client.state = state
        seconds[state] = int(view(chosen).estimate.split()[1])
    assert seconds["stopped"] == seconds["starting"] >= seconds["idle"] + 5


def test_synthetic_volumes_are_told_so_that_they_are_not_offered_as_inputs(view, add, synthetic):
    source = add("T1")
    made = synthetic("T2 (synthetic from T1)", "T2", source)
    assert view(Choices()).no_inputs == (made.GetID(),)


def test_too_large_a_volume_for_the_device_is_warned_of(view, session, add):
    session.client.info = WorkerInfo("0", "3", 1, "2", (replace(GPU, memory_bytes=1_000_000), CPU))
    shown = view(Choices(sources=((add("T1"), "T1"),), targets=("T2",)))
    assert "more than the device has" in shown.estimate
    assert shown.can_start  # it would fall back to tiles and to the CPU


def test_a_task_holds_only_what_can_be_made(packages, add):
    node = add("T1")
    chosen = Choices(sources=((node, "T1"),), targets=("T1", "T2", "PD"), package="tiny", steps=0, spacing=1.5)
    task = choices.task_of(chosen, packages)
    assert dict(task.sources) == {"T1": node}
    assert task.targets == ("T2",)
    assert (task.package.name, task.method, task.steps, task.spacing) == ("tiny", "aldm", None, (1.5, 1.5, 1.5))
    assert task.reference is None


@pytest.fixture
def zero_shot(scene, session, packages, zero_shot_packages):
    """Function: choices -> what the panel shows where zero-shot packages are installed too."""
    listed = [ListedPackage(name, folder, False, load_package(folder))
              for name, folder in vars(zero_shot_packages).items()]  # fmt: skip
    return lambda chosen: view_of(scene, chosen, (*packages, *listed), session)


def test_a_listed_contrast_is_offered_all_methods_and_the_paired_one_is_chosen(zero_shot, add):
    chosen = Choices(sources=((add("T1"), "T1"),), targets=("T2", "PD"), package="both")
    shown = zero_shot(chosen)
    assert [each.key for each in shown.methods] == ["regression", "midiffusion"]
    assert (shown.method, shown.targets, shown.button) == ("regression", ("T2", "FLAIR"), "&Synthesize T2")
    assert (shown.offer, shown.can_start, shown.iterative) == ("", True, False)
    other = zero_shot(replace(chosen, method="midiffusion"))
    assert (other.method, other.targets, other.button) == ("midiffusion", ("PD",), "&Synthesize PD")
    assert (other.offer, other.can_start, other.iterative) == ("", True, True)


@pytest.mark.parametrize("contrast", [OTHER, "FLAIR"])
def test_an_unlisted_contrast_is_offered_zero_shot_methods_and_targets_alone_with_the_reason(zero_shot, add, contrast):
    chosen = Choices(((add("scan 7"), contrast),), ("T1", "T2"), package="both", method="regression")
    shown = zero_shot(chosen)
    assert [each.key for each in shown.methods] == ["midiffusion"]
    assert (shown.method, shown.targets, shown.button) == ("midiffusion", ("T1", "PD"), "&Synthesize T1")
    assert shown.can_start and "CPU" in shown.estimate
    assert "Only zero-shot synthesis starts from a contrast like that of 'scan 7'" in shown.offer


def test_a_model_of_one_target_needs_no_excuse_for_what_it_offers(zero_shot, add):
    shown = zero_shot(Choices(((add("scan 7"), OTHER),), ("T1",), package="alone"))
    assert (shown.targets, shown.offer, shown.can_start) == (("T1",), "", True)
    assert [each.text for each in shown.references] == ["Same as scan 7 (unlisted contrast)"]


def test_an_unlisted_contrast_and_a_paired_model_offer_nothing_and_say_why(zero_shot, add):
    shown = zero_shot(Choices(((add("scan 7"), OTHER),), ("T1",), package="tiny"))
    assert (shown.methods, shown.method, shown.targets, shown.can_start) == ((), "", (), False)
    assert shown.reason == "This model cannot start from 'scan 7': choose its contrast, or a zero-shot model."


def test_zero_shot_synthesis_asks_for_one_volume(zero_shot, add):
    two = ((add("a"), "T1"), (add("b"), "T2"))
    shown = zero_shot(Choices(two, ("PD",), package="both", method="midiffusion"))
    assert shown.reason.endswith("starts from one volume: keep one under Inputs, or choose another method.")
    assert zero_shot(Choices(two, ("FLAIR",), package="both")).can_start
    alone = zero_shot(Choices(((two[0][0], OTHER), two[1]), ("T1",), package="both"))
    assert alone.reason.endswith("starts from one volume: keep one under Inputs.")  # there is no other method


def test_two_volumes_of_an_unlisted_contrast_are_one_too_many(zero_shot, add):
    shown = zero_shot(Choices(((add("a"), OTHER), (add("b"), OTHER)), ("T1",), package="both"))
    assert shown.reason == "'a' and 'b' are both of an unlisted contrast: keep one of them."


def test_a_contrast_that_is_not_yet_chosen_is_asked_for_and_other_named_where_it_helps(zero_shot, add):
    chosen = Choices(((add("scan 7"), UNKNOWN),), ("T2",))
    assert "'Other'" in zero_shot(replace(chosen, package="both")).reason
    assert "Other" not in zero_shot(replace(chosen, package="tiny")).reason


def test_a_task_from_an_unlisted_contrast_is_zero_shot(zero_shot, packages, zero_shot_packages, add):
    listed = (*packages, ListedPackage("both", zero_shot_packages.both, False, load_package(zero_shot_packages.both)))
    node = add("scan 7")
    task = choices.task_of(Choices(((node, OTHER),), ("T1", "T2"), package="both"), listed)
    assert (dict(task.sources), task.targets, task.method) == ({OTHER: node}, ("T1",), "midiffusion")


def test_the_choice_of_another_contrast_is_kept_in_the_parameter_node(add):
    parameters = SimpleNamespace(**{f"source{n}": None for n in range(1, 5)})
    vars(parameters).update({f"modality{n}": UNKNOWN for n in range(1, 5)})
    node = add("scan 7 T1")
    parameters.source1, parameters.modality1 = node, OTHER_CHOICE
    assert choices.settle(parameters, {node.GetID(): "T1"}) == {node.GetID(): OTHER}
    assert (parameters.source1, parameters.modality1) == (node, OTHER_CHOICE)
    assert OTHER_CHOICE in choices.MODALITY_CHOICES


def test_results_are_listed_with_how_they_were_made(view, add, synthetic):
    node = synthetic("T2 (synthetic from T1)", "T2", add("T1"))
    (shown,) = view(Choices()).results
    assert (shown.key, shown.text) == (node.GetID(), "T2 (synthetic from T1)")
    assert "micro" in shown.hint


def test_a_result_is_compared_with_the_source_that_gave_its_grid(add, synthetic, scene):
    source = add("T1")
    node = synthetic("T2 (synthetic from T1)", "T2", source)
    assert compared_with(node) is source
    scene.RemoveNode(source)
    assert compared_with(node) is None


def test_a_comparison_needs_two_volumes(add):
    chosen = dict.fromkeys(
        ("compareSource", "compareSynthetic", "compareAcquired", "segmentation", "otherSegmentation")
    )
    parameters = SimpleNamespace(**chosen | {"compareRows": choices.ALL_PLANES, "compareSource": add("T1")})
    with pytest.raises(InputError, match="Choose a source and a synthetic volume"):
        comparison_of(parameters)
    parameters.compareSynthetic = add("T2")
    assert comparison_of(parameters).rows == ("Axial", "Sagittal", "Coronal")


def test_a_package_is_found_by_name_by_folder_and_by_itself(tiny_package):
    assert choices.package_named(None).name == "micro"
    assert choices.package_named("micro").name == "micro"
    assert choices.package_named(tiny_package).name == "tiny"
    with pytest.raises(ModelPackageError):
        choices.package_named("unknown")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "less than 1 s"), (7.4, "7 s"), (33, "35 s"), (150, "2 min"), (7300, "2 h")],
)
def test_times_are_no_more_exact_than_they_are_meant(seconds, expected):
    assert duration(seconds) == expected


def test_a_saved_result_that_is_loaded_again_is_no_acquired_scan(scene, add, synthetic, tmp_path):
    from MissingModalitySynthLib.scene.results import save_result

    made = synthetic("T2 (synthetic from T1)", "T2", add("T1"))
    save_result(made, tmp_path / "patient7_T2.nrrd")
    loaded = add("patient7_T2")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(tmp_path / "patient7_T2.nrrd"))
    loaded.SetAndObserveStorageNodeID(storage.GetID())
    assert loaded in choices.acquired_volumes(scene)
    choices.recognise_synthetic(scene)
    assert loaded not in choices.acquired_volumes(scene)
