"""Laws of reading: no input breaks the reader, and what is written is what is read."""

import json
import string
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from opbyte.core.config import (
    Document,
    parse_assignment,
    parse_document,
    resolve_path,
    set_values,
    validate,
)
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import BytesPerSecond, Count, Ratio

NAMES = st.text(string.ascii_lowercase + "-_ä0", min_size=1, max_size=8)
# Without what YAML forbids or folds raw in a text: controls, separators, the byte order mark.
PRINTED = st.characters(max_codepoint=0xFFEF, exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(PRINTED, max_size=12)
)
TREES: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    NAMES,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    ),
    max_size=5,
)
YAML_LIKE = st.text("ab:-[]{},&*!|>?#'\"%@ \n\t\\0159.e~<=/\x00\u00e9\ufeff\u2028", max_size=60)


class Leaf(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth: BytesPerSecond
    count: Count | None = None
    share: Ratio | None = None


class Tree(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    leaves: dict[str, Leaf | list[Leaf]] = {}
    b: int | str | None = None


def outcome(text: str, name: str) -> str:
    try:
        validate(Tree, parse_document(text, name))
    except ConfigError as error:
        return str(error)
    return ""


@given(YAML_LIKE | st.text(max_size=60), st.sampled_from(["f.yaml", "f.json"]))
@example("a: 0\r: [", "f.yaml")
def test_any_text_validates_or_raises_a_config_error_that_prints(text: str, name: str) -> None:
    for line in outcome(text, name).splitlines():
        assert line.startswith("f.")
        assert line.isprintable()


@given(TREES, st.text())
def test_json_is_read_as_json_reads_it(tree: dict[str, Any], odd: str) -> None:
    tree["odd"] = odd
    for text in (json.dumps(tree), json.dumps(tree, indent="\t", ensure_ascii=False)):
        document = parse_document(text, "f.json")
        assert document.data == json.loads(text)
        assert _types(document.data) == _types(json.loads(text))


@given(TREES.filter(bool), st.booleans())
def test_quoted_yaml_comes_back(tree: dict[str, Any], flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow, default_style='"', allow_unicode=True)
    assert _texts(parse_document(text).data) == _texts(tree)


@given(TREES)
def test_every_entry_has_its_own_place(tree: dict[str, Any]) -> None:
    document = parse_document(json.dumps(tree, indent=1), "f.json")
    places = [document.where(path) for path in _paths(tree, ())]
    assert len(set(places)) == len(places)
    assert all(document.marks.get(path) for path in _paths(tree, ()))


@given(TREES)
def test_the_place_of_a_key_is_where_it_stands(tree: dict[str, Any]) -> None:
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    document = parse_document(text, "f.json")
    lines = text.split("\n")
    for path in _paths(tree, ()):
        if path and isinstance(path[-1], str):
            mark = document.marks[path]
            assert lines[mark.line - 1][mark.column - 1 :].startswith(f'"{path[-1]}":')


@given(TREES, st.text("ab.-0[", max_size=20))
def test_any_path_resolves_or_raises_a_config_error(tree: dict[str, Any], path: str) -> None:
    try:
        full = resolve_path(tree, path)
    except ConfigError as error:
        named = [problem.path for problem in error.problems]
    else:
        named = [".".join(full)]
    assert named == [path]


@given(TREES.filter(bool), st.data())
def test_a_full_path_resolves_to_itself_and_sets_only_itself(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from([p for p in _paths(tree, ()) if p]))
    dotted = ".".join(map(str, path))
    assert resolve_path(tree, dotted) == tuple(map(str, path))
    document = Document(tree, {}, "f.yaml")
    before = json.dumps(tree)
    changed = set_values(document, {dotted: "new"})
    assert changed.value(path) == "new"
    assert json.dumps(tree) == before
    back = set_values(changed, {dotted: document.value(path)})
    assert back.data == tree


@given(NAMES, SCALARS)
def test_assignments_read_what_json_writes(name: str, value: object) -> None:
    path, read = parse_assignment(f"{name}={json.dumps(value, ensure_ascii=False)}")
    assert (path, read, type(read)) == (name, value, type(value))


@given(st.text(max_size=30))
def test_any_assignment_reads_or_raises_a_config_error(text: str) -> None:
    try:
        place = f"--set {parse_assignment(text)[0]}"
    except ConfigError as error:
        place = str(error)
    assert place.startswith("--set ")


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(inner) for key, inner in value.items()}
    return [_types(inner) for inner in value] if isinstance(value, list) else type(value)


def _texts(value: Any) -> Any:
    """Return a tree with its texts only; other scalars become None."""
    if isinstance(value, dict):
        return {key: _texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_texts(inner) for inner in value]
    return value if isinstance(value, str) else None


def _paths(value: Any, path: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            found += _paths(inner, (*path, position))
    return found
