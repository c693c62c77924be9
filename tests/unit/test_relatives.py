"""`like` in a kernel block copies the relative's numbers and says so."""

import pytest

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine


def test_a_relative_lends_its_numbers_and_says_whose_they_are() -> None:
    fitted, other = load_machine("a100-sxm-80gb"), load_machine("h100-sxm-80gb")
    for name in ("matrix", "fill", "overlap"):
        path = f"gpu.sm.kernel.{name}"
        assert other.values[path] == fitted.values[path]
        assert other.parameters[path].source == (
            "assumed: nearest relative, fitted on a100-sxm-80gb"
        )
        low, high = other.parameters[path].range or (0, 0)
        assert low < fitted.values[path] < high
    assert other.parameters["gpu.sm.kernel.matrix"].range == (pytest.approx(0.94 / 1.5), 1.0)


def test_what_the_file_says_itself_stays() -> None:
    other = load_machine("h100-sxm-80gb")
    assert other.values["gpu.sm.kernel.energy"] == pytest.approx(0.789e-12)
    assert other.replace({"gpu.sm.kernel.tail": 0.5}).values["gpu.sm.kernel.tail"] == 0.5


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ("sn40l-socket", "without a `kernel` block"),
        ("a100-sxm-80", "a100-sxm-80gb"),
        (5, "a machine's name is due"),
    ],
)
def test_a_relative_that_is_none_is_refused(like: object, message: str) -> None:
    data = load_machine("t4").document.data
    unit = data["parts"]["gpu"]["units"]["sm"]
    unit = {**unit, "generation": "ampere", "kernel": {"like": like}}
    gpu = {**data["parts"]["gpu"], "units": {"sm": unit}}
    with pytest.raises(ConfigError, match=message):
        load_machine({**data, "parts": {"gpu": gpu}})
