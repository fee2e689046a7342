"""What the Extensions Index checks by program, and that all metadata of the extension agree.

The checks are those of scripts/check_description_files.py in https://github.com/Slicer/ExtensionsIndex (August 2026),
the keys those of Slicer's Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from MissingModalitySynthLib.scene.dependencies import TORCH

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "Resources" / "MissingModalitySynth.json"
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")

# The one place to change when the repository gets its address; the other places then fail here until they agree.
REPOSITORY = "https://github.com/MissingModalitySynth/SlicerMissingModalitySynth"
RAW = "https://raw.githubusercontent.com/MissingModalitySynth/SlicerMissingModalitySynth/main"

# What Slicer 5.12 brings: its SuperBuild/External_python-*.cmake
SHIPPED = {"numpy", "scipy", "simpleitk", "pillow", "pydicom", "requests", "packaging"}


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def value(name: str) -> str:
    """A variable of the top CMakeLists.txt, found by the same kind of pattern as the index uses."""
    return re.search(rf'set\s*\({name}\s*"([^"]+)"[ ]*\)', CMAKE)[1]


def test_the_entry_has_the_keys_of_its_schema_and_nothing_else():
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))
    assert entry.keys() >= {"$schema", "category", "scm_url"}
    assert entry.keys() <= {
        "$schema",
        "category",
        "scm_url",
        "scm_revision",
        "scm_type",
        "build_dependencies",
        "build_subdirectory",
        "enabled",
        "tier",
    }
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert 1 <= entry["tier"] <= 5


def test_the_entry_has_unix_line_ends():
    assert b"\r" not in ENTRY.read_bytes()


def test_the_project_is_named_as_the_entry_and_does_not_begin_with_slicer():
    assert re.findall(r"project\s*\(\s*([^\s\)]+)", CMAKE) == [ENTRY.stem]
    assert not ENTRY.stem.lower().startswith("slicer")
    assert REPOSITORY.rpartition("/")[2] == f"Slicer{ENTRY.stem}"


def test_category_and_dependencies_are_the_same_in_the_entry_and_in_cmake():
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))
    assert entry["category"] == value("EXTENSION_CATEGORY") == "Image Synthesis"
    depends = re.search(r'set\(EXTENSION_DEPENDS "([^"]+)"\)', CMAKE)[1].split()
    assert entry["build_dependencies"] == depends == ["PyTorch"]


def test_every_place_that_names_the_repository_names_the_same_one():
    assert json.loads(ENTRY.read_text(encoding="utf-8"))["scm_url"] == REPOSITORY
    assert value("EXTENSION_HOMEPAGE") == REPOSITORY
    owner = REPOSITORY.split("/")[3]
    for path in tracked():
        if path.suffix in {".py", ".txt", ".md", ".json", ".toml", ".ui"} and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            found = re.findall(rf"https://(?:github|raw\.githubusercontent)\.com/{owner}/[^\s\"'<>)#]*", text)
            assert all(address.startswith((REPOSITORY, RAW)) for address in found), path


@pytest.mark.parametrize("name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_pictures_of_the_catalogue_are_png_files_of_the_repository(name):
    for address in value(name).split():
        assert address.startswith(f"{RAW}/")
        with Image.open(ROOT / address.removeprefix(f"{RAW}/")) as picture:
            assert picture.format == "PNG"


def test_icons_are_square_png_of_128_pixels_with_a_transparent_ground():
    icons = (ROOT / "Resources", ROOT / "MissingModalitySynth" / "Resources" / "Icons")
    for icon in (folder / "MissingModalitySynth.png" for folder in icons):
        with Image.open(icon) as picture:
            assert (picture.format, picture.size, picture.mode) == ("PNG", (128, 128), "RGBA")
            assert picture.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("ground", [(255, 255, 255), (43, 43, 43)])
@pytest.mark.parametrize("size", [24, 64, 128])
def test_the_icon_stands_out_from_light_and_dark_grounds_at_every_size(ground, size):
    with Image.open(ROOT / "Resources" / "MissingModalitySynth.png") as picture:
        icon = picture.resize((size, size), Image.Resampling.LANCZOS)
    shown = Image.new("RGB", icon.size, ground)
    shown.paste(icon, mask=icon)
    opaque = [at for at in ((x, y) for x in range(size) for y in range(size)) if icon.getpixel(at)[3] > 200]
    distinct = [at for at in opaque if max(abs(a - b) for a, b in zip(shown.getpixel(at), ground, strict=True)) > 60]
    assert len(distinct) > 0.75 * len(opaque) > 0.3 * size * size


def test_the_description_is_one_or_two_sentences():
    assert 1 <= len(re.findall(r"\.(?:\s|$)", value("EXTENSION_DESCRIPTION"))) <= 2


def test_the_licence_is_in_the_root():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")


def test_no_picture_of_the_repository_is_svg():
    assert [path for path in tracked() if path.suffix == ".svg"] == []


def test_a_clone_with_its_history_is_smaller_than_100_megabytes():
    # What a clone fetches: other branches, loose objects and copies in several packs are this checkout's alone.
    command = ["git", "rev-list", "--objects", "--disk-usage", "HEAD"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("not a git checkout, or a git before 2.31")
    assert int(git.stdout) + sum(path.stat().st_size for path in tracked()) < 100 * 2**20


def requirements() -> dict[str, Requirement]:
    path = ROOT / "MissingModalitySynth" / "Resources" / "requirements.txt"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {each.name.lower(): each for each in map(Requirement, lines)}


def test_the_modules_requirements_are_the_projects_without_torch_and_what_slicer_brings():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    declared = {each.name.lower(): each for each in map(Requirement, re.findall(r'"(.+)"', lines))}
    assert TORCH == declared.pop("torch")
    assert requirements() == {name: each for name, each in declared.items() if name not in SHIPPED}


def test_requirements_are_lower_bounds_only():
    for each in requirements().values():
        assert [specifier.operator for specifier in each.specifier] == [">="]
        assert each.url is each.marker is None


def test_no_requirement_replaces_what_slicer_brings_or_torch():
    assert requirements().keys() & (SHIPPED | {"torch", "torchvision"}) == set()
