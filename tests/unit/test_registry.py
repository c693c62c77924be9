"""Do names find their entries, and do wrong names get help?"""

import pytest

from opbyte.core.errors import ConfigError
from opbyte.core.registry import Registry, nearest


@pytest.fixture
def memories() -> Registry[type]:
    registry: Registry[type] = Registry("memory")
    for name in ("sram", "hbm3", "ddr5"):
        registry.register(name)(type(name, (), {}))
    registry.register("hbm")(int)
    return registry


def test_register_returns_what_it_decorates(memories: Registry[type]) -> None:
    @memories.register("nand")
    class Nand:
        pass

    assert memories.lookup("nand") is Nand
    assert "nand" in memories
    assert "nor" not in memories


def test_names_are_sorted(memories: Registry[type]) -> None:
    assert memories.names() == ["ddr5", "hbm", "hbm3", "sram"]


def test_a_wrong_name_gets_the_nearest_and_all(memories: Registry[type]) -> None:
    with pytest.raises(ConfigError) as caught:
        memories.lookup("hmb")
    text = "no memory is called 'hmb'. Did you mean 'hbm'? Known: ddr5, hbm, hbm3, sram."
    assert str(caught.value) == text


def test_a_name_like_no_other_gets_no_guess(memories: Registry[type]) -> None:
    with pytest.raises(ConfigError) as caught:
        memories.lookup("qqqqq")
    assert str(caught.value) == "no memory is called 'qqqqq'. Known: ddr5, hbm, hbm3, sram."


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(ConfigError, match="No link is known at all"):
        Registry("link").lookup("pcie")


def test_a_taken_name_is_refused_but_the_same_entry_may_come_again(
    memories: Registry[type],
) -> None:
    memories.register("hbm")(int)
    with pytest.raises(ConfigError, match="two memory entries are called 'hbm'"):
        memories.register("hbm")(float)
    assert memories.lookup("hbm") is int


def test_registries_share_nothing() -> None:
    one, two = Registry[int]("x"), Registry[int]("x")
    one.register("a")(1)
    assert two.names() == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("HBM3", "hbm3"),
        ("llama_3.1_8B", "llama-3.1-8b"),
        ("bandwith", "bandwidth"),
        ("zzz", None),
        ("", None),
        ("h" * 100_000, None),
    ],
)
def test_nearest(word: str, expected: str | None) -> None:
    assert nearest(word, ["hbm3", "bandwidth", "llama-3.1-8b"]) == expected


def test_nearest_does_not_depend_on_the_order_of_the_known() -> None:
    known = ["hbm4", "hbm2", "hbm3"]
    assert {nearest("hbm", order) for order in (known, known[::-1], sorted(known))} == {
        nearest("hbm", known)
    }


def test_a_long_list_is_cut() -> None:
    registry: Registry[int] = Registry("point")
    for i in range(100):
        registry.register(f"p{i:03}")(i)
    with pytest.raises(ConfigError, match="p039 and 60 more"):
        registry.lookup("absent-name")
