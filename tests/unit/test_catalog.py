"""Are catalog entries found by name, and users' files by path?"""

from pathlib import Path

import pytest

from opbyte.core.catalog import Catalog
from opbyte.core.errors import ConfigError


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    for name in ("llama-3.1-8b.yaml", "qwen3-32b.json", "mixtral-8x7b.yml", "notes.txt"):
        (tmp_path / name).write_text("kind: model\n")
    (tmp_path / "folder.yaml").mkdir()
    return Catalog("model", tmp_path)


def test_names_are_file_names_without_suffix(catalog: Catalog) -> None:
    assert catalog.names() == ["llama-3.1-8b", "mixtral-8x7b", "qwen3-32b"]


def test_names_with_dots_are_names(catalog: Catalog) -> None:
    assert catalog.path("llama-3.1-8b") == catalog.folder / "llama-3.1-8b.yaml"
    assert catalog.find("llama-3.1-8b") == catalog.folder / "llama-3.1-8b.yaml"


def test_a_wrong_name_gets_the_nearest_and_all(catalog: Catalog) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.find("llama3.1-8B")
    assert str(caught.value) == (
        "no model is called 'llama3.1-8B'. Did you mean 'llama-3.1-8b'? "
        "Known: llama-3.1-8b, mixtral-8x7b, qwen3-32b."
    )


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_files_of_the_user(catalog: Catalog, tmp_path: Path, kind: type) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("kind: model\n")
    assert catalog.find(kind(own)) == own


def test_a_path_that_does_not_exist_gets_its_nearest_neighbour(
    catalog: Catalog, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*Did you mean '.*mixtral-8x7b\.yml'"):
        catalog.find(str(tmp_path / "mixtral-8x7.yml"))
    with pytest.raises(ConfigError, match="There is no folder"):
        catalog.find(str(tmp_path / "absent" / "x.yaml"))


def test_an_absent_folder_is_an_empty_catalog(tmp_path: Path) -> None:
    empty = Catalog("model", tmp_path / "absent")
    assert empty.names() == []
    with pytest.raises(ConfigError, match="No model is known at all"):
        empty.path("x")


def test_a_name_can_not_leave_the_folder(catalog: Catalog) -> None:
    with pytest.raises(ConfigError):
        catalog.path("../secret")
