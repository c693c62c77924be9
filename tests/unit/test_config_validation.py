"""Is everything that pydantic finds reported in plain language, at its place?"""

import enum
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator, model_validator

from opbyte.core import dtypes
from opbyte.core.config import Document, parse_document, set_values, validate
from opbyte.core.errors import ConfigError, Problem
from opbyte.core.parameters import Bytes, BytesPerSecond, OpsPerSecond, Parameter, Ratio, Seconds


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Port(Strict):
    bandwidth: BytesPerSecond
    latency: Seconds = Parameter.of("0 s", "seconds")


class Sram(Strict):
    kind: Literal["sram"]
    capacity: Bytes
    ports: dict[str, Port] = {}


class Dram(Strict):
    kind: Literal["dram"]
    capacity: Bytes
    ports: dict[str, Port] = {}
    banks: int = Field(4, ge=1, lt=1024)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Ring(Strict):
    hops: int
    width: int


class Mesh(Strict):
    rows: int


class Names(RootModel[list[str]]):
    pass


class Unit(Strict):
    at: str | list[str]
    peak: dict[str, OpsPerSecond] = {}
    mode: Literal["fast", "slow"] = "fast"
    dtype: str = "bf16"
    shape: tuple[int, int] | None = None
    color: Color = Color.RED
    tags: list[str] = Field(default=[], max_length=2)
    on: bool = True
    name: str = Field("x", min_length=1, max_length=8, pattern="^[a-z]*$")
    share: Ratio | Literal["rest"] = "rest"
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    names: Names = Names([])
    renamed: int = Field(0, alias="re-named")

    @field_validator("dtype")
    @classmethod
    def _known(cls, name: str) -> str:
        return dtypes.lookup(name).name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "slow" and self.shape is not None:
            raise ConfigError(
                [Problem("", "shape", "a slow unit has no shape", "", "Remove it."),
                 Problem("", "mode", "a shape needs mode fast")]
            )  # fmt: skip
        if self.name == "bad":
            raise ValueError("Names must be good.")
        return self


class Machine(Strict):
    """A small stand-in for the files of opbyte."""

    name: str = "m"
    memory: dict[str, Annotated[Sram | Dram, Field(discriminator="kind")]] = {}
    units: dict[str, Unit] = {}
    net: Ring | Mesh | None = None
    run: list[Annotated[Sram | Dram, Field(discriminator="kind")]] = []
    note: str = Field("", description="what this is for")
    needed: int = Field(1, description="how many")


def problems(text: str, cls: type[BaseModel] = Machine) -> list[str]:
    """Return the error lines of a text that reads well but must not validate."""
    with pytest.raises(ConfigError) as caught:
        validate(cls, parse_document(text, "f.yaml"))
    return str(caught.value).splitlines()


def unit(text: str) -> list[str]:
    return problems(f"units: {{u: {{at: x, {text}}}}}")


def test_what_is_right_becomes_the_model() -> None:
    text = "memory: {hbm: {kind: dram, capacity: 64 GiB, ports: {phy: {bandwidth: 1 TB/s}}}}"
    machine = validate(Machine, parse_document(text))
    hbm = machine.memory["hbm"]
    assert isinstance(hbm, Dram)
    assert float(hbm.ports["phy"].bandwidth) == 1e12


def test_part_of_a_document_validates_with_full_paths() -> None:
    document = parse_document("a:\n  machine: {units: {u: {at: 5}}}\n", "f.yaml")
    with pytest.raises(ConfigError) as caught:
        validate(Machine, document, ("a", "machine"))
    assert str(caught.value).startswith("f.yaml:2:25: a.machine.units.u.at: must be text")
    with pytest.raises(ConfigError, match=r"f.yaml:1:1: a: the key 'absent' is missing"):
        validate(Machine, document, ("a", "absent"))


def test_unknown_keys_are_located_at_the_key_with_the_nearest_of_the_right_class() -> None:
    text = "memory:\n  hbm:\n    kind: dram\n    capacity: 1 GB\n    bnks: 5\nnam: x\n"
    inner, outer = problems(text)
    assert inner == (
        "f.yaml:5:5: memory.hbm: no key is called 'bnks'. Did you mean 'banks'? "
        "Known: banks, capacity, kind, ports."
    )
    assert outer == (
        "f.yaml:6:1: no key is called 'nam'. Did you mean 'name'? "
        "Known: memory, name, needed, net, note, run, units."
    )


def test_keys_of_the_other_member_of_a_union_are_not_offered() -> None:
    (line,) = problems("memory: {s: {kind: sram, capacity: 1 GB, banks: 5}}")
    assert line.endswith("no key is called 'banks'. Known: capacity, kind, ports.")


@pytest.mark.parametrize("name", ["dram", "sram", "kind", "ports", "Dram", "capacity"])
def test_entries_called_like_tags_or_fields_do_not_confuse_places(name: str) -> None:
    text = f"memory:\n  hbm: {{kind: dram, capacity: 1 GB}}\n  {name}: {{kind: dram, capacity: 5}}"
    (line,) = problems(text)
    assert line.startswith(
        f"f.yaml:3:{len(name) + 18}: memory.{name}.capacity: a size needs a unit"
    )
    ports = f"memory: {{x: {{kind: dram, capacity: 1 GB, ports: {{{name}: {{}}}}}}}}"
    (line,) = problems(ports)
    assert f"memory.x.ports.{name}: the key 'bandwidth' is missing" in line


def test_missing_keys_say_what_to_add() -> None:
    (line,) = problems("memory: {s: {kind: sram, ports: {p: {bandwidth: 1 B/s}}}}")
    assert line == (
        "f.yaml:1:10: memory.s: the key 'capacity' is missing. Add for example `capacity: 64 GiB`."
    )

    class Described(Strict):
        count: int = Field(description="how many there are")

    assert problems("{}", Described) == [
        "f.yaml:1:1: the key 'count' is missing. It is: how many there are."
    ]


def test_a_typo_is_one_problem_not_two() -> None:
    (line,) = problems("memory: {s: {kind: sram, capacty: 1 GB}}")
    assert "Did you mean 'capacity'" in line
    two = problems("memory: {s: {kind: sram, colour: 1 GB}}")
    assert len(two) == 2


def test_wrong_and_absent_kinds_list_the_kinds() -> None:
    text = "memory:\n  a: {kind: drm}\n  b: {capacity: 1 GB}\n  c: 5\nrun: [{kind: x}]"
    known = "Known: dram, sram."
    assert problems(text) == [
        f"f.yaml:2:7: memory.a.kind: no kind is called 'drm'. Did you mean 'dram'? {known}",
        f"f.yaml:3:3: memory.b: the key 'kind' is missing. {known}",
        "f.yaml:4:3: memory.c: must be a mapping, got 5. Write lines of `key: value`.",
        f"f.yaml:5:8: run[0].kind: no kind is called 'x'. {known}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("peak: 5", "units.u.peak: must be a mapping, got 5. Write lines of `key: value`."),
        ("mode: fats", "units.u.mode: must be 'fast' or 'slow', got 'fats'. Did you mean 'fast'?"),
        ("mode: 5", "units.u.mode: must be 'fast' or 'slow', got 5."),
        ("color: blu", "units.u.color: must be 'red' or 'blue', got 'blu'. Did you mean 'blue'?"),
        ("tags: x", "units.u.tags: must be a list, got 'x'. Write [x]."),
        ("tags: [a, b, c]", "units.u.tags: must have at most 2 entries, got a list of 3 items."),
        ("tags: [a, 5]", 'units.u.tags[1]: must be text, got 5. Write it in quotes: "5".'),
        ("on: maybe", "units.u.on: must be true or false, got 'maybe'."),
        ("on: 7", "units.u.on: must be true or false, got 7."),
        ("name: ''", "units.u.name: must be a text of at least 1 characters, got ''."),
        ("name: A", "units.u.name: must match the pattern ^[a-z]*$, got 'A'."),
        ("shape: [1]", "units.u.shape: the item 1 is missing."),
        ("shape: [1, x]", "units.u.shape[1]: must be a whole number, got 'x'."),
        ("shape: [1, 2.5]", "units.u.shape[1]: must be a whole number, got 2.5."),
        ("scale: 0", "units.u.scale: must be above 0.0, got 0."),
        ("scale: .inf", "units.u.scale: must be finite, got inf."),
        ("scale: x", "units.u.scale: must be a number, got 'x'."),
        ("names: [a, {}]", "units.u.names[1]: must be text, got a mapping of 0 keys."),
        ("re-named: x", "units.u.re-named: must be a whole number, got 'x'."),
        ("dtype: fp5", "units.u.dtype: no number format is called 'fp5'."),
        ("name: bad", "units.u: names must be good."),
        ("peak: {a: 1 B}", "units.u.peak.a: a rate of operations is due here, B is a size"),
    ],
)  # fmt: skip
def test_rules_in_plain_words(text: str, expected: str) -> None:
    (line,) = unit(text)
    assert line.split(": ", 1)[1].startswith(expected)


def test_bounds_name_the_bound() -> None:
    low, high = problems(
        "memory: {a: {kind: dram, capacity: 1 B, banks: 0},"
        " b: {kind: dram, capacity: 1 B, banks: 1024}}"
    )
    assert low.endswith("memory.a.banks: must be at least 1, got 0.")
    assert high.endswith("memory.b.banks: must be below 1024, got 1024.")


def test_our_own_errors_in_validators_keep_their_parts_and_get_places() -> None:
    lines = problems("units:\n  u:\n    at: x\n    shape: [1, 2]\n    mode: slow\n")
    assert lines == [
        "f.yaml:4:5: units.u.shape: a slow unit has no shape. Remove it.",
        "f.yaml:5:5: units.u.mode: a shape needs mode fast.",
    ]


def test_problems_inside_a_quantity_are_at_their_own_keys() -> None:
    text = "memory:\n  s:\n    kind: sram\n    capacity:\n      value: 1 GB\n      rnge: 5\n"
    (line,) = problems(text)
    assert line.startswith("f.yaml:6:7: memory.s.capacity.rnge: a quantity has no key 'rnge'")
    (line,) = problems("memory: {s: {kind: sram, capacity: {value: 1 GB, range: [2 GB, x]}}}")
    assert "f.yaml:1:64: memory.s.capacity.range[1]: a size must start with a number" in line


def test_a_value_of_no_kind_of_a_union_is_told_all_kinds_at_once() -> None:
    assert problems("units: {u: {at: 5}}") == [
        "f.yaml:1:13: units.u.at: must be text, or must be a list, got 5."
    ]
    (line,) = unit("share: most")
    assert line.endswith(
        "units.u.share: a ratio must start with a number, or must be 'rest', got 'most'."
    )


def test_a_union_reports_the_member_that_was_meant() -> None:
    assert problems("units: {u: {at: [x, 5]}}") == [
        'f.yaml:1:21: units.u.at[1]: must be text, got 5. Write it in quotes: "5".'
    ]
    assert problems("net: {rows: x}") == ["f.yaml:1:7: net.rows: must be a whole number, got 'x'."]
    assert problems("net: {hops: 1}") == ["f.yaml:1:1: net: the key 'width' is missing."]
    (line,) = problems("net: {hops: 1, width: 2, depth: 3}")
    assert line.endswith("net: no key is called 'depth'. Known: hops, width.")


def test_problems_come_in_the_order_of_the_file() -> None:
    text = "zz: 1\nunits: {u: {at: 5}}\nnote: 5\nmemory: {s: {kind: x}}\nname: 5\n"
    assert [line.split(":")[1] for line in problems(text)] == ["1", "2", "3", "4", "5"]


def test_values_of_the_command_line_are_located_there() -> None:
    document = set_values(
        parse_document("memory: {s: {kind: sram, capacity: 1 GB}}", "f.yaml"),
        {"s.capacity": "4 GB/s", "s.bnks": 5},
    )
    with pytest.raises(ConfigError) as caught:
        validate(Machine, document)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("--set s.capacity=4 GB/s: memory.s.capacity: a size is due here")
    assert lines[1].startswith("--set s.bnks=5: memory.s: no key is called 'bnks'")


def test_very_many_problems_are_cut() -> None:
    data: dict[str, Any] = {f"k{i}": 1 for i in range(5000)}
    with pytest.raises(ConfigError) as caught:
        validate(Machine, Document(data, {}, "f.yaml"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 100
    assert lines[-1] == "f.yaml: and 4901 more."


def test_nothing_of_pydantic_shows() -> None:
    text = "memory: {a: {kind: x}, b: 5}\nunits: {u: {at: 5, shape: [x], on: 7, q: 1}}\nnet: 5\n"
    shown = "\n".join(problems(text)).lower()
    for word in ("pydantic", "input should", "union", "[type=", "field required", "permitted"):
        assert word not in shown
