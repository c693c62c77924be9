"""Does `extends` lay one file on another, and keep the places of both?"""

from pathlib import Path

import pytest

from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, load_document, parse_document
from opbyte.core.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    def one(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return one


def failure(path: Path, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_document(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_mappings_merge_and_all_else_replaces(write) -> None:
    base = write("base.yaml", "a: {b: 1, c: 2}\nd: [1, 2, 3]\ne: 5\nf: {g: 1}\n")
    over = write("over.yaml", "extends: base.yaml\na: {c: 3, h: 4}\nd: [9]\nf: x\ni: {j: 1}\n")
    document = load_document(over)
    assert document.data == {
        "a": {"b": 1, "c": 3, "h": 4},
        "d": [9],
        "e": 5,
        "f": "x",
        "i": {"j": 1},
    }
    assert document.name == str(over)
    assert document.where(("a", "b")) == f"{base}:1:5"
    assert document.where(("a", "c")) == f"{over}:2:5"
    assert document.where(("d", 0)) == f"{over}:3:5"
    assert document.where(("d", 2)) == f"{over}:3:1"
    assert document.where(("f", "g")) == f"{over}:4:1"
    assert document.where(("e",)) == f"{base}:3:1"


def test_null_deletes_nothing_it_is_a_value(write) -> None:
    write("base.yaml", "a: {b: 1}\nc: 2\n")
    assert load_document(write("o.yaml", "extends: base.yaml\na: null\n")).data == {
        "a": None,
        "c": 2,
    }


def test_a_new_value_does_not_inherit_the_source_of_the_old(write) -> None:
    write("base.yaml", "a: {value: 1 TB/s, source: paper}\n")
    document = load_document(write("o.yaml", "extends: base.yaml\na: {value: 2 TB/s}\n"))
    assert document.data == {"a": {"value": "2 TB/s"}}


def test_a_source_alone_is_added(write) -> None:
    write("base.yaml", "a: {value: 1 TB/s}\n")
    document = load_document(write("o.yaml", "extends: base.yaml\na: {source: paper}\n"))
    assert document.data == {"a": {"value": "1 TB/s", "source": "paper"}}


def test_chains_and_paths_are_relative_to_the_file_that_names_them(write) -> None:
    write("parts/hbm.yaml", "extends: base.yaml\nb: 2\n")
    write("parts/base.yaml", "a: 1\nb: 1\n")
    top = write("top.yaml", "extends: parts/hbm.yaml\nc: 3\n")
    assert load_document(top).data == {"a": 1, "b": 2, "c": 3}


def test_catalog_names_go_through_find(write, tmp_path: Path) -> None:
    write("catalog/sn40l-node.yaml", "kind: machine\na: 1\n")
    find = Catalog("machine", tmp_path / "catalog").find
    top = write("top.yaml", "extends: sn40l-node\nb: 2\n")
    assert load_document(top, find=find).data == {"kind": "machine", "a": 1, "b": 2}
    assert "Write for example sn40l-node.yaml." in failure(top)
    wrong = write("wrong.yaml", "extends: sn40-node\n")
    message = failure(wrong, find=find)
    assert message.startswith(f"{wrong}:1:1: extends: no machine is called 'sn40-node'")
    assert "Did you mean 'sn40l-node'" in message


def test_texts_extend_files_beside_their_name(write, tmp_path: Path) -> None:
    write("base.yaml", "a: 1\n")
    document = parse_document("extends: base.yaml\nb: 2", str(tmp_path / "text.yaml"))
    assert isinstance(document, Document)
    assert document.data == {"a": 1, "b": 2}


def test_circles_are_shown(write) -> None:
    a = write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: c.yaml\n")
    write("c.yaml", "extends: ./b.yaml\n")
    assert "in a circle, got b.yaml -> c.yaml -> b.yaml" in failure(a)
    own = write("own.yaml", "extends: own.yaml\n")
    assert failure(own) == (
        f"{own}:1:1: extends: files extend each other in a circle, got own.yaml -> own.yaml."
    )


def test_long_chains_are_refused(write) -> None:
    for i in range(30):
        write(f"f{i}.yaml", f"extends: f{i + 1}.yaml\n")
    write("f30.yaml", "a: 1\n")
    assert "at most 16 files" in failure(write("top.yaml", "extends: f0.yaml\n"))


@pytest.mark.parametrize("named", ["5", "[a.yaml]", "''", "null"])
def test_what_is_extended_must_be_a_name(write, named: str) -> None:
    assert "path of a file or a catalog name" in failure(write("o.yaml", f"extends: {named}\n"))


def test_absent_files_and_mistakes_in_bases_are_located(write, tmp_path: Path) -> None:
    write("base.yaml", "a: 1\na: 2\n")
    over = write("over.yaml", "b: 1\nextends: bse.yaml\n")
    message = failure(over)
    assert message.startswith(f"{over}:2:1: extends: the file does not exist, got bse.yaml")
    assert "base.yaml" in message
    over.write_text("extends: base.yaml\n")
    assert failure(over).startswith(f"{tmp_path / 'base.yaml'}:2:1: the key 'a' is given twice")


def test_kinds_do_not_mix(write) -> None:
    write("base.yaml", "kind: machine\n")
    over = write("over.yaml", "kind: mapping\nextends: base.yaml\n")
    assert failure(over) == (
        f"{over}:2:1: extends: a file of kind 'mapping' can not extend one of kind 'machine', "
        "got base.yaml."
    )
