"""Are files read by the rules of YAML 1.2, safely, and with every mistake at its place?"""

import math
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from opbyte.core.config import LARGEST_FILE_BYTES, Document, load_document, parse_document
from opbyte.core.errors import ConfigError


def lines_of(text: str, name: str = "f.yaml") -> list[str]:
    """Return the error lines of a text that must not load."""
    with pytest.raises(ConfigError) as caught:
        parse_document(text, name)
    return str(caught.value).splitlines()


def failure(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_document(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e12", 1e12),
        ("1.2e12", 1.2e12),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+7", 7),
        ("-0", 0),
        ("24_000", "24_000"),
        ("190:20:30", "190:20:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("nil", "nil"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("!!float 5", 5.0),
        ("!!int '5'", 5),
        ("1.8 TB/s", "1.8 TB/s"),
        ("20 %", "20 %"),
        ("=", "="),
        ("0b1", "0b1"),
        ("1.2.3", "1.2.3"),
        ("+.inf", math.inf),
        ("-.INF", -math.inf),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = parse_document(f"a: {text}").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_document("a: .NaN").data["a"])


def test_json_is_read_too() -> None:
    text = '{\n\t"a": 1,\n\t"b": [1, 2.5e3, null, true, "no"],\n\t"c": {"d": "\\u00e9\\/"}\n}'
    document = parse_document(text, "f.json")
    assert document.data == {"a": 1, "b": [1, 2500.0, None, True, "no"], "c": {"d": "é/"}}
    assert document.where(("c", "d")) == "f.json:4:8"
    assert parse_document('{"a":1,"b":{"c":2}}', "f.json").data == {"a": 1, "b": {"c": 2}}


def test_json_escapes_that_yaml_lacks_are_read() -> None:
    text = '{"a": "\\ud83d\\ude00", "b": {"c": 1}}'
    assert parse_document(text, "f.json").data == {"a": "\U0001f600", "b": {"c": 1}}
    assert "given twice" in lines_of('{"a": "\\ud83d\\ude00", "a": 1}', "f.json")[0]
    deep = '{"a": "\\ud83d\\ude00", "b": ' + "[" * 5000 + "]" * 5000 + "}"
    assert "nested" in lines_of(deep, "f.json")[0]


def test_json_mistakes_are_named_as_json() -> None:
    assert lines_of('{"a": 1\n "b": 2}', "f.json") == [
        "f.json:2:2: this is not JSON: expecting ',' delimiter."
    ]


def test_marks_are_at_keys_and_items() -> None:
    document = parse_document("a:\n  b: 1\n  c:\n    - x\n    - {d: 2, e: 3}\n", "f.yaml")
    assert document.where(("a",)) == "f.yaml:1:1"
    assert document.where(("a", "b")) == "f.yaml:2:3"
    assert document.where(("a", "c", 1)) == "f.yaml:5:7"
    assert document.where(("a", "c", 1, "e")) == "f.yaml:5:14"
    assert document.where(("a", "c", 1, "absent", 5)) == "f.yaml:5:7"
    assert document.where(("absent",)) == "f.yaml:1:1"
    assert Document({}, {}, "f.yaml").where(("a",)) == "f.yaml"


def test_value_follows_a_path() -> None:
    document = parse_document("a: [{b: 5}]")
    assert document.value(("a", 0, "b")) == 5
    with pytest.raises(KeyError):
        document.value(("a", 1, "b"))


def test_aliases_stand_for_their_value() -> None:
    document = parse_document("a: &x {b: 1}\nc: *x")
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.where(("c", "b")) == "<text>:2:1"
    assert parse_document("a: &k name\n*k : 1").data == {"a": "name", "name": 1}


def test_every_mistake_of_a_file_is_reported() -> None:
    text = (
        "a: 1\nb: {c: 1, c: 2, c: 3}\na: 2\n5: x\ntrue: y\n? [z]\n: 1\nd: 1e999\ne: *q\nf: !x 1\n"
    )
    twice = "is given twice. It stands at line"
    assert lines_of(text) == [
        f"f.yaml:2:11: b: the key 'c' {twice} 2 already; keep one of them.",
        f"f.yaml:2:17: b: the key 'c' {twice} 2 already; keep one of them.",
        f"f.yaml:3:1: the key 'a' {twice} 1 already; keep one of them.",
        'f.yaml:4:1: a key must be text, got 5. Write "5".',
        'f.yaml:5:1: a key must be text, got true. Write "true".',
        "f.yaml:6:3: a key must be text, got a list of 1 item. Write a plain name.",
        "f.yaml:8:4: a number must be below 1.8e308, got '1e999'.",
        "f.yaml:9:4: the alias '*q' has no anchor before it.",
        "f.yaml:10:4: the tag '!x' is not supported here, got '1'.",
    ]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "f.yaml", "it is empty"),
        ("  \n\n", "f.yaml", "it is empty"),
        ("# only\n# comments\n", "f.yaml", "only comments"),
        ("---\n...\n", "f.yaml", "must hold settings"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1", "one document"),
        ("- a\n- b\n", "f.yaml:1:1", "must be a mapping, got a list of 2 items"),
        ("just text", "f.yaml:1:1", "must be a mapping, got 'just text'"),
        ("5", "f.yaml:1:1", "must be a mapping, got 5"),
        ("a: &a [*a]", "f.yaml:1:8", "'*a' contains itself"),
        ("a: &a {b: {c: *a}}", "f.yaml:1:15", "contains itself"),
        ("<<: {a: 1}", "f.yaml:1:1", "merge keys"),
        ("a: 1\nb:\n\t- c\n", "f.yaml:3:1", "a tab can not indent"),
        ("a: {b: 1", "f.yaml:2:1", "not closed"),
        ("a: [1, 2", "f.yaml:2:1", "not closed"),
        ("a: b: c", "f.yaml:1:5", "':' stands where no key can be"),
        ("a: 'x", "f.yaml:1:6", "quoted text"),
        ("a: @x", "f.yaml:1:4", "quotes"),
        ("a: `x`", "f.yaml:1:4", "quotes"),
        ("a:\n  - b\n c: 1", "f.yaml:3:2", "indentation"),
        ("a: \x07", "f.yaml:1:4", "U+0007"),
        ("a: x\nb: \ud800", "f.yaml", "character 8"),
        ("a: !!python/object/apply:os.system ['x']", "f.yaml:1:4", "tag"),
        ("a: !!timestamp 2024-01-01", "f.yaml:1:4", "tag"),
        ("a: !include x.yaml", "f.yaml:1:4", "tag '!include'"),
        ("a: !!int x", "f.yaml:1:4", "does not fit"),
        ("a: !!map [1]", "f.yaml:1:4", "tag"),
        ("a: " + "9" * 401, "f.yaml:1:4", "at most 400 digits"),
        ("a: " + "[" * 100, "f.yaml:1:67", "at most 64 deep"),
        ("a: " + "[" * 10**6, "f.yaml:1:67", "at most 64 deep"),
        ("- " * 10**5, "f.yaml:1:129", "at most 64 deep"),
        ("? " * 10**5, "f.yaml:1:129", "at most 64 deep"),
    ],
)
def test_what_can_not_be_read_says_where_and_why(text: str, place: str, words: str) -> None:
    (line,) = lines_of(text)
    assert line.startswith(f"{place}: ")
    assert words in line


def test_nesting_up_to_the_limit_is_read() -> None:
    for depth, ok in ((63, True), (64, False)):
        text = "a: " + "[" * depth + "]" * depth
        if ok:
            assert parse_document(text).data["a"] is not None
        else:
            assert "at most 64 deep" in lines_of(text)[0]


def test_aliases_can_not_go_round_the_limit_of_depth() -> None:
    text = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100))
    assert "f.yaml:64:12: values may be nested" in lines_of(text)[0]


def test_alias_bombs_are_refused_quickly() -> None:
    ten = ",".join(["x"] * 10)
    text = f"a0: &a0 [{ten}]\n"
    for i in range(1, 10):
        text += f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n"
    start = time.perf_counter()
    (line,) = lines_of(text)
    assert time.perf_counter() - start < 1.0
    assert line.startswith("f.yaml:6:")
    assert "at most 200,000 values, aliases written out" in line


def test_more_values_than_the_limit_are_refused() -> None:
    text = "a:\n" + "- x\n" * 200_001
    assert "at most 200,000 values" in lines_of(text)[0]


def test_both_of_yamls_parsers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "a: [1, {b: 2}]\nc: &x d\ne: *x\n",
        "a: 1\na: 2",
        "a: &a [*a]",
        "\t",
        "a: \x07",
        "? [a]",
        "a: é",
    ]

    def outcome(text: str) -> object:
        try:
            document = parse_document(text, "f.yaml")
        except ConfigError as error:
            return [(p.where.split(":")[1], p.rule) for p in error.problems]
        return document.data, document.marks

    assert hasattr(yaml, "CSafeLoader")
    with_c = [outcome(text) for text in texts]
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert [outcome(text) for text in texts] == with_c


def test_a_file_loads_with_its_name_in_marks(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("\ufeffa: é\nb: 2\n", encoding="utf-8")
    document = load_document(path)
    assert document.data == {"a": "é", "b": 2}
    assert document.where(("b",)) == f"{path}:2:1"
    assert load_document(str(path)).data == document.data


def test_files_of_facts_may_have_numbers_as_keys(tmp_path: Path) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text("speedup:\n  1: 2\n  4.0: 7\n  true: 1\n")
    assert "a key must be text, got 1" in failure(path)
    assert load_document(path, any_keys=True).data == {"speedup": {"1": 2, "4.0": 7, "true": 1}}
    path.write_text("1: 2\n1: 3\n[a]: 4\n")
    with pytest.raises(ConfigError) as caught:
        load_document(path, any_keys=True)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: 1\nb: \xff\n", [":2:4: ", "byte 8 (0xff)", "UTF-8"]),
        (b"\xef\xbb\xbfa: \xff", [":1:7: ", "byte 6 (0xff)"]),
        (b"a: caf\xe9\n", ["byte 6 (0xe9)"]),
        (b"a: 1\n\x00", [":2:1: ", "byte 5 is NUL", "binary"]),
        (b"PAR1\x00\x01\x02", ["byte 4 is NUL"]),
        ("a: 1".encode("utf-16"), ["UTF-16", "Save it as UTF-8"]),
        (b"", ["it is empty"]),
    ],
)
def test_bytes_that_are_no_text_are_located(tmp_path: Path, data: bytes, words: list[str]) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(data)
    for word in words:
        assert word in failure(path)


def test_absent_files_folders_and_odd_names(tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").write_text("a: 1")
    assert "Did you mean" in failure(tmp_path / "machin.yaml")
    assert "machine.yaml" in failure(tmp_path / "machin.yaml")
    assert "this is a folder. Name a file in it: machine.yaml." in failure(tmp_path)
    assert "There is no folder" in failure(tmp_path / "x" / "y.yaml")
    assert "can not be read" in failure(tmp_path / ("x" * 5000))
    assert "can not be read" in failure(tmp_path / "a\0b")
    assert "can not be read" in failure(tmp_path / "machine.yaml" / "x.yaml")


def test_unreadable_files_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("a: 1")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "may not be read. Check its permissions." in failure(path)


def test_a_link_to_itself_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.symlink_to(path)
    assert "loop.yaml: the file can not be read" in failure(path)


def test_files_of_up_to_the_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(b"a: 1 #".ljust(LARGEST_FILE_BYTES, b"x"))
    assert load_document(path).data == {"a": 1}
    path.write_bytes(b"a: 1 #".ljust(LARGEST_FILE_BYTES + 1, b"x"))
    assert "at most 4 MiB" in failure(path)


def test_a_file_of_100_mb_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 10**6)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        message = failure(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "at most 4 MiB, got 95.4 MiB" in message
    assert peak < 5e6
    assert time.perf_counter() - start < 1.0


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_an_endless_file_is_refused() -> None:
    assert Path("/dev/zero").is_char_device()
    assert "at most 4 MiB" in failure(Path("/dev/zero"))


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "x, " * 199_000 + "]",
        "a: " + "x" * (LARGEST_FILE_BYTES - 10),
        "a: 1\n" * 40_000,
    ],
    ids=["items", "scalar", "duplicates"],
)
def test_no_text_within_the_limits_needs_much_memory(text: str) -> None:
    tracemalloc.start()
    try:
        try:
            shown = str(parse_document(text).name)
        except ConfigError as error:
            shown = str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shown) < 30_000
    assert peak < 300e6
