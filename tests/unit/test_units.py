"""Are quantities read exactly, and wrong ones explained?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError
from opbyte.core.units import DIMENSIONS, format_quantity, parse

CASES = [
    ("64 GiB", "bytes", 64 * 2**30),
    ("64GB", "bytes", 64e9),
    ("520 MiB", "bytes", 520 * 2**20),
    ("4 kB", "bytes", 4000),
    ("4 KiB", "bytes", 4096),
    ("16 Gbit", "bytes", 2e9),
    ("16 Gb", "bytes", 2e9),
    ("2 Gib", "bytes", 2**28),
    ("8 bytes", "bytes", 8),
    ("1.8 TB/s", "bytes_per_s", 1.8e12),
    ("3.352 TB/s", "bytes_per_s", 3.352e12),
    ("12.5 Gb/s", "bytes_per_s", 1.5625e9),
    ("100 Gbps", "bytes_per_s", 12.5e9),
    ("2 GiB/s", "bytes_per_s", 2**31),
    ("64 B/ns", "bytes_per_s", 64e9),
    ("5 us", "seconds", 5e-6),
    ("5 µs", "seconds", 5e-6),
    ("5 \u03bcs", "seconds", 5e-6),
    ("16.5 ns", "seconds", 16.5e-9),
    ("2 min", "seconds", 120),
    ("1 h", "seconds", 3600),
    ("638 TFLOP/s", "ops_per_s", 638e12),
    ("638 TFLOPS", "ops_per_s", 638e12),
    ("638 TOPS", "ops_per_s", 638e12),
    ("2 Gop/s", "ops_per_s", 2e9),
    ("1.6 GHz", "hertz", 1.6e9),
    ("700 W", "watts", 700),
    ("100 mW", "watts", 0.1),
    ("1 kWh", "joules", 3.6e6),
    ("3.5 pJ", "joules", 3.5e-12),
    ("3.5 pJ/bit", "joules_per_bit", 3.5e-12),
    ("3.5 pJ/b", "joules_per_bit", 3.5e-12),
    ("0.4 pJ/FLOP", "joules_per_op", 0.4e-12),
    ("0.4 pJ/op", "joules_per_op", 0.4e-12),
    ("814 mm2", "area", 814e-6),
    ("814 mm^2", "area", 814e-6),
    ("814 mm²", "area", 814e-6),
    ("1 m2", "area", 1.0),
    ("30000 USD", "dollars", 30000),
    ("12 $", "dollars", 12),
    ("12 USD/GB", "dollars_per_byte", 12e-9),
    ("0.5 mm2/MiB", "area_per_byte", 0.5e-6 / 2**20),
    ("11 mm2/(TB/s)", "area_per_rate", 11e-18),
    ("0.5 mm2/(TFLOP/s)", "area_per_ops", 0.5e-18),
    ("85 %", "ratio", 0.85),
    ("85%", "ratio", 0.85),
    (0.85, "ratio", 0.85),
    ("0.85", "ratio", 0.85),
    (64, "count", 64),
    (1.5, "factor", 1.5),
    ("1e3 B", "bytes", 1000),
    ("-.5e1 B", "bytes", -5),
    ("  7 B  ", "bytes", 7),
]


@pytest.mark.parametrize(("text", "dimension", "expected"), CASES)
def test_parse_gives_si(text: object, dimension: str, expected: float) -> None:
    assert parse(text, dimension) == pytest.approx(expected, rel=1e-15)


def test_energy_per_bit_is_per_bit_not_per_byte() -> None:
    assert parse("3.5 pJ/bit", "joules_per_bit") == 3.5e-12
    assert parse("3.5 pJ/b", "joules_per_bit") == 3.5e-12
    assert parse("8 pJ/B", "joules_per_bit") == 1e-12
    assert parse("8 pJ/B", "joules_per_bit") * 8 == parse("8 pJ/bit", "joules_per_bit")
    assert format_quantity(3.5e-12, "joules_per_bit") == "3.5 pJ/bit"


@pytest.mark.parametrize("digits", ["1.8", "3.352", "0.1", "2.675", "6.03", "7.7"])
def test_conversion_rounds_once(digits: str) -> None:
    assert parse(f"{digits} TB/s", "bytes_per_s") == float(f"{digits}e12")
    assert parse(f"{digits} ns", "seconds") == float(f"{digits}e-9")


@pytest.mark.parametrize(
    ("value", "dimension", "words"),
    [
        (1.8e12, "bytes_per_s", ["needs a unit", "1.8 TB/s"]),
        ("1.8", "bytes_per_s", ["needs a unit", "1.8 TB/s"]),
        (0, "seconds", ["needs a unit", "250 ns"]),
        ("1.6 GT/s", "bytes_per_s", ["transfer", "bytes of one transfer"]),
        ("64 GiB", "bytes_per_s", ["GiB is a size", "bandwidth"]),
        ("638 TFLOP", "ops_per_s", ["per second", "TFLOP/s"]),
        ("4 KB", "bytes", ["kB is 1000", "KiB 1024"]),
        ("1.8 tb/s", "bytes_per_s", ["TB or Tb"]),
        ("5 TMAC/s", "ops_per_s", ["2 operations"]),
        ("5 parsec", "seconds", ["unknown unit 'parsec'"]),
        ("5 ghz", "hertz", ["Did you mean 'GHz'"]),
        ("fast", "bytes_per_s", ["start with a number"]),
        ("", "bytes", ["start with a number"]),
        ("nan B", "bytes", ["start with a number"]),
        ("inf B", "bytes", ["start with a number"]),
        ("1 2 B", "bytes", ["unit"]),
        ("5 B/", "bytes", ["unit"]),
        ("5 (B", "bytes", ["not closed"]),
        ("5 ((((((((B", "bytes", ["unit"]),
        ("5 B)", "bytes", ["can not be read"]),
        ("5 B; rm", "bytes", ["can not be read"]),
        ("5 B/s/s", "bytes_per_s", ["something else"]),
        ("1e999999999 B", "bytes", ["out of range"]),
        ("1e-999999999 B", "bytes", ["out of range"]),
        ("1e399 B", "bytes", ["out of range"]),
        ("1" * 5000 + " B", "bytes", ["start with a number"]),
        (10**400, "count", ["out of range"]),
        (True, "count", ["number"]),
        (None, "bytes", ["number", "null"]),
        (["1 B"], "bytes", ["a list of 1 item"]),
        ("85 %", "seconds", ["ratio"]),
    ],
)
def test_wrong_quantities_are_explained(value: object, dimension: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(value, dimension)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_dimension_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bytes_per_s'"):
        parse("1 B", "bytes_per_sec")


@pytest.mark.parametrize("name", sorted(DIMENSIONS))
def test_every_example_is_valid(name: str) -> None:
    for example in DIMENSIONS[name].example.split(" or "):
        assert parse(example, name) > 0


@pytest.mark.parametrize(
    ("x", "dimension", "text"),
    [
        (1.8e12, "bytes_per_s", "1.8 TB/s"),
        (64 * 2**30, "bytes", "64 GiB"),
        (80e9, "bytes", "80 GB"),
        (1.5 * 2**40, "bytes", "1.5 TiB"),
        (638e12, "ops_per_s", "638 TFLOP/s"),
        (5e-6, "seconds", "5 us"),
        (3600.0, "seconds", "3600 s"),
        (0.0, "seconds", "0 s"),
        (0.0, "bytes", "0 B"),
        (-2e9, "bytes_per_s", "-2 GB/s"),
        (0.85, "ratio", "85 %"),
        (64.0, "count", "64"),
        (1e9, "count", "1000000000"),
        (999999.9, "bytes_per_s", "1 MB/s"),
        (814e-6, "area", "814 mm2"),
    ],
)
def test_format(x: float, dimension: str, text: str) -> None:
    assert format_quantity(x, dimension) == text


def test_format_of_what_is_no_number() -> None:
    assert format_quantity(float("nan"), "bytes") == "nan EiB"
    assert format_quantity(float("inf"), "seconds") == "inf s"


@given(
    st.sampled_from(sorted(DIMENSIONS)),
    st.floats(min_value=1e-30, max_value=1e30),
    st.sampled_from([1.0, -1.0]),
    st.integers(min_value=3, max_value=17),
)
def test_what_is_printed_reads_back_to_the_printed_digits(
    name: str, size: float, sign: float, digits: int
) -> None:
    x = sign * size
    back = parse(format_quantity(x, name, digits), name)
    assert back == pytest.approx(x, rel=max(0.5 * 10.0 ** (1 - digits), 3e-16))


@given(st.sampled_from(sorted(DIMENSIONS)), st.floats(allow_nan=False, allow_infinity=False))
def test_seventeen_digits_give_every_float_back_exactly(name: str, x: float) -> None:
    assert parse(format_quantity(x, name, 17), name) == x


@given(st.text(max_size=40), st.sampled_from(sorted(DIMENSIONS)))
def test_any_text_is_a_quantity_or_a_config_error(text: str, name: str) -> None:
    try:
        message = str(parse(text, name))
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()
