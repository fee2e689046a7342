"""Installing, listing and removing model packages: whole and verified, or not at all, whatever the zip file holds."""

import stat
import struct
import zipfile
from pathlib import Path

import platformdirs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from MissingModalitySynthLib import model_package
from MissingModalitySynthLib.errors import ModelPackageError
from MissingModalitySynthLib.model_package import find_package, list_packages, load_package, user_folder, verify
from MissingModalitySynthLib.package_store import install_package, remove_package

FIND_BUNDLED_FOLDER = model_package.bundled_folder  # the tests put another one in its place


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch, user_models, small_model) -> Path:
    """An empty folder for the user's packages, and one bundled package named ``bundled``."""
    monkeypatch.setattr(model_package, "bundled_folder", lambda: tmp_path / "bundled models")
    small_model.write(tmp_path / "bundled models" / "bundled")
    return user_models


def zip_of(folder: Path, target: Path, prefix: str | None = None) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(
                path, f"{folder.name + '/' if prefix is None else prefix}{path.relative_to(folder).as_posix()}"
            )
    return target


@pytest.mark.parametrize("form", ["folder", "zip of the folder", "zip of its content"])
def test_a_package_is_installed_found_and_removed(micro, models, form):
    sources = {
        "folder": lambda: micro,
        "zip of the folder": lambda: zip_of(micro, micro.parent / "any name.zip"),
        "zip of its content": lambda: zip_of(micro, micro.parent / "micro.zip", prefix=""),
    }
    installed = install_package(sources[form]())
    assert installed.path == models / "micro"
    assert installed.digest == load_package(micro).digest
    assert find_package("micro") == load_package("micro") == verify(str(models / "micro")) == installed
    assert [(row.name, row.bundled) for row in list_packages()] == [("bundled", True), ("micro", False)]
    remove_package("micro")
    assert list(models.iterdir()) == []
    with pytest.raises(ModelPackageError, match='no model package "micro"; known ones: bundled'):
        find_package("micro")


def test_an_installed_package_is_replaced_only_on_request(micro, small_model):
    old = install_package(micro)
    new = small_model.write(micro, model_card="# Second edition\n", replace=True)
    with pytest.raises(ModelPackageError, match="there already"):
        install_package(micro)
    assert find_package("micro").digest == old.digest
    assert install_package(micro, replace=True).digest == new.digest
    assert [path.name for path in old.path.parent.iterdir()] == ["micro"]


def test_a_damaged_package_is_not_installed_and_leaves_the_installed_one(micro, models):
    before = install_package(micro)
    (micro / "LICENSE").write_text("other terms\n")
    for source in (micro, zip_of(micro, micro.parent / "micro.zip")):
        with pytest.raises(ModelPackageError, match="LICENSE"):
            install_package(source, replace=True)
    assert find_package("micro") == before
    assert [path.name for path in models.iterdir()] == ["micro"]


def test_junk_of_file_managers_is_not_installed(micro, models):
    (micro / ".DS_Store").write_bytes(b"\0")
    source = zip_of(micro, micro.parent / "micro.zip")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("__MACOSX/micro/._LICENSE", b"\0")
    for each in (micro, source):
        install_package(each, replace=True)
        assert not (models / "micro" / ".DS_Store").exists()
    assert [path.name for path in models.iterdir()] == ["micro"]


def test_bundled_packages_are_neither_replaced_nor_removed(tmp_path, small_model):
    bundled = find_package("bundled")
    with pytest.raises(ModelPackageError, match="cannot be removed"):
        remove_package("bundled")
    with pytest.raises(ModelPackageError, match="cannot be replaced"):
        install_package(small_model.write(tmp_path / "bundled").path, replace=True)
    assert verify("bundled") == bundled


@pytest.mark.parametrize("name", ["..", ".", "", "../bundled models/bundled", "none", ".package-x"])
def test_only_the_name_of_an_installed_package_is_removed(tmp_path, micro, models, name):
    install_package(micro)
    (models / ".package-x").mkdir()
    with pytest.raises(ModelPackageError, match="not installed"):
        remove_package(name)
    assert verify("micro").path == models / "micro"
    assert verify("bundled").path.is_relative_to(tmp_path / "bundled models")


def test_a_damaged_package_is_listed_with_its_problem_and_can_be_removed(micro, models):
    install_package(micro)
    (models / "micro" / "configs" / "metadata.json").write_text("{}")
    (models / "empty").mkdir()
    rows = {row.name: row for row in list_packages()}
    assert rows["bundled"].package == find_package("bundled")
    assert rows["micro"].package is None
    assert "configs/metadata.json" in rows["micro"].problem
    assert "SHA256SUMS" in rows["empty"].problem
    remove_package("micro")
    assert "micro" not in [row.name for row in list_packages()]


@pytest.mark.parametrize("name", ["modèle cérébral 脳", "m" * 100])
def test_non_ascii_names_and_long_paths_work(tmp_path, monkeypatch, small_model, name):
    deep = tmp_path.joinpath("ü" * 60, "b" * 60, "c c" * 20)
    monkeypatch.setenv("MISSING_MODALITY_SYNTH_MODELS", str(deep))
    package = small_model.write(deep / "source" / name)
    assert len(str(package.path)) > 200
    for source in (package.path, zip_of(package.path, deep / "source" / "package.zip")):
        installed = install_package(source, replace=True)
        assert (installed.name, installed.digest) == (name, package.digest)
        assert torch.equal(find_package(name).weights()["block.0.weight"], package.weights()["block.0.weight"])


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelPackageError, match=r"none\.zip"):
        install_package(tmp_path / "none.zip")
    with pytest.raises(ModelPackageError, match='"none" is not there'):
        load_package(tmp_path / "none")


@pytest.mark.parametrize("place", ["a/b/lib/Models", "a/b/Resources/Models", "a/Resources/Models"])
def test_bundled_packages_are_found_beside_the_library_in_the_module_and_in_the_checkout(tmp_path, monkeypatch, place):
    monkeypatch.setattr(model_package, "__file__", str(tmp_path / "a" / "b" / "lib" / "model_package.py"))
    assert FIND_BUNDLED_FOLDER() is None
    (tmp_path / place).mkdir(parents=True)
    assert FIND_BUNDLED_FOLDER() == tmp_path.resolve() / place


def test_without_a_setting_packages_are_installed_below_the_folder_for_user_data(monkeypatch):
    monkeypatch.delenv("MISSING_MODALITY_SYNTH_MODELS")
    assert user_folder().is_relative_to(platformdirs.user_data_path("MissingModalitySynth", appauthor=False))


# Hostile zip files


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.txt",
        "micro/../../escaped.txt",
        "/escaped.txt",
        "C:/escaped.txt",
        "..\\escaped.txt",
        "micro\\..\\..\\escaped.txt",
        "micro/.. /.. /escaped.txt",
        "micro//escaped.txt",
        "micro/escaped.txt\n",
        "../",
    ],
)
def test_zip_entries_that_escape_are_refused_before_anything_is_written(micro, models, name):
    source = zip_of(micro, micro.parent / "micro.zip")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"" if name.endswith("/") else b"x")
    with pytest.raises(ModelPackageError, match=r"micro\.zip is refused.*outside the package's folder"):
        install_package(source)
    assert not list(models.iterdir())
    assert not list(micro.parent.rglob("escaped*"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_entries_that_are_links_or_special_files_are_refused(micro, models, kind):
    source, entry = zip_of(micro, micro.parent / "micro.zip"), zipfile.ZipInfo("micro/docs/link.txt")
    entry.create_system = 3  # Unix, whose file types are in the upper half of external_attr
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(ModelPackageError, match="link or another special file"):
        install_package(source)
    assert not list(models.iterdir())


def central_directory_changed(source: Path, offset: int, packed: bytes) -> None:
    """Overwrite bytes of the first entry in the zip file's central directory."""
    data = bytearray(source.read_bytes())
    start = data.index(b"PK\x01\x02") + offset
    data[start : start + len(packed)] = packed
    source.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "size"), [("configs/metadata.json", 2 << 20), ("models/aldm.safetensors", 4 << 30), ("LICENSE", 1 << 31)]
)
def test_a_zip_entry_that_declares_too_large_a_size_is_refused_unread(tmp_path, models, name, size):
    source = tmp_path / "bomb.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"bomb/{name}", b"0" * 1000)
        archive.writestr("bomb/SHA256SUMS", b"")
    central_directory_changed(source, 24, struct.pack("<I", min(size, 2**32 - 2)))
    with pytest.raises(ModelPackageError, match="would unpack to"):
        install_package(source)
    assert not list(models.iterdir())


def test_a_zip_file_that_unpacks_to_a_hundred_times_its_size_is_refused(tmp_path, models):
    source = tmp_path / "bomb.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/SHA256SUMS", b"")
        for number in range(3):
            archive.writestr(f"bomb/models/{number}.safetensors", bytes(8 << 20))
    with pytest.raises(ModelPackageError, match=f"would unpack to 4 files of {3 * (8 << 20)} bytes"):
        install_package(source)
    assert not list(models.iterdir())


def test_a_zip_entry_that_unpacks_to_more_than_it_declares_is_refused(micro, models):
    source = zip_of(micro, micro.parent / "micro.zip")
    central_directory_changed(source, 24, struct.pack("<I", 5))
    with pytest.raises(ModelPackageError):
        install_package(source)
    assert not list(models.iterdir())


def test_a_zip_file_of_too_many_entries_is_refused(micro):
    source = zip_of(micro, micro.parent / "micro.zip")
    with zipfile.ZipFile(source, "a") as archive:
        for number in range(1001):
            archive.writestr(f"micro/docs/{number}.txt", b"")
    with pytest.raises(ModelPackageError, match="would unpack to"):
        install_package(source)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04", b"PK\x05\x06" + bytes(17)])
def test_a_file_that_is_no_zip_file_is_refused(tmp_path, content):
    (tmp_path / "micro.zip").write_bytes(content)
    with pytest.raises(ModelPackageError, match=r"micro\.zip is no zip file that can be read"):
        install_package(tmp_path / "micro.zip")


def test_an_entry_outside_the_zip_file_is_refused(micro, models):
    source = zip_of(micro, micro.parent / "micro.zip")
    central_directory_changed(source, 42, struct.pack("<I", 2**32 - 2))
    with pytest.raises(ModelPackageError):
        install_package(source)
    assert not models.exists() or not list(models.iterdir())


def test_an_encrypted_zip_file_is_refused(micro):
    source = zip_of(micro, micro.parent / "micro.zip")
    central_directory_changed(source, 8, struct.pack("<H", 1))
    with pytest.raises(ModelPackageError, match="encrypted"):
        install_package(source)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_whose_memory_cannot_be_bounded_are_refused(micro, compression):
    source = zip_of(micro, micro.parent / "micro.zip")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("micro/docs/notes.txt", "notes", compression)
    with pytest.raises(ModelPackageError, match="compressed in an unusual way"):
        install_package(source)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("micro/LICENSE", "twice"),
        ("micro/models/aldm.pt", "weights must be .safetensors"),
        ("other/notes.txt", "nothing beside it"),
        ("other/SHA256SUMS", "one package"),
        ("micro/docs/notes.txt", "does not list"),
    ],
)
def test_zip_entries_that_belong_to_no_package_are_refused(micro, models, name, sentence):
    source = zip_of(micro, micro.parent / "micro.zip")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ModelPackageError, match=sentence):
        install_package(source)
    assert not list(models.iterdir())


@pytest.mark.parametrize("name", [".hidden", "-.hidden."])
def test_packages_of_hidden_or_unsafe_names_are_not_installed(micro, models, name):
    source = zip_of(micro, micro.parent / f"{name}.zip", prefix="")
    with pytest.raises(ModelPackageError, match=r"hidden.*cannot be installed under that name"):
        install_package(source)
    assert not list(models.iterdir())


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_zip_file_with_random_damage_is_refused_or_installed_intact(micro, models, data):
    models.mkdir(exist_ok=True)
    source = micro.parent / "micro.zip"
    original = zip_of(micro, source).read_bytes()
    damaged = bytearray(original)
    for position in data.draw(st.lists(st.integers(0, len(original) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    source.write_bytes(damaged[: data.draw(st.integers(len(original) - 40, len(original)))])
    try:
        installed = install_package(source, replace=True)
        assert installed.digest == load_package(micro).digest
        remove_package(installed.name)
    except ModelPackageError:
        pass
    assert not list(models.iterdir())
