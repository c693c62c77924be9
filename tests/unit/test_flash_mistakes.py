"""Flash devices: what is wrong is named with place, rule, value and remedy."""

import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps.cli import main


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, r"^mqsim-default: channels: must be above 0, got 0"),
        ({"read": "-5 us"}, r"^mqsim-default: read: a time can not be negative"),
        ({"mapping": {"nope": 3}}, r"^mqsim-default: mapping: no key is called 'nope'"),
        (
            {"chanels": 4},
            r"no field of a flash device, got 4. Did you mean 'channels'\? Known",
        ),
        ({"buffer": {"size": "0 B"}}, r"`buffer.size` must be 512 B or more, got 0 B"),
    ],
)
def test_changed_values_are_not_blamed_on_a_file(changes, message):
    with pytest.raises(ConfigError, match=message):
        ob.flash("mqsim-default", **changes)


def test_mistakes_of_a_file_have_their_line(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: mqsim-default\nchannels: 0\n")
    with pytest.raises(ConfigError, match=r"own.yaml:2:\d+: channels: must be above 0"):
        ob.flash(own)
    with pytest.raises(ConfigError, match=r"own.yaml:2:\d+: channels: must be above 0"):
        ob.flash(own, read="25 us")


def test_a_name_that_is_no_memory_finds_flash(capsys):
    assert main(["memory", "mqsim-defaults"]) == 2
    told = capsys.readouterr().err
    assert "Did you mean 'mqsim-default'?" in told
    assert "ddr5-4800" in told


def test_wear_by_day(capsys):
    assert main(["memory", "mqsim-default", "--requests", "9", "--writes-per-day", "1 TB"]) == 2
    assert "--writes-per-day: needs a pattern, got 1 TB. add --wear kv" in capsys.readouterr().err
    arguments = ["memory", "mqsim-default", "--requests", "9", "--wear", "kv", "--json"]
    assert main([*arguments, "--writes-per-day", "1 TB"]) == 0
    assert '"years"' in capsys.readouterr().out


def test_more_requests_than_are_simulated_are_refused_before_they_are_drawn(capsys):
    assert main(["memory", "mqsim-default", "--requests", "99999999999999"]) == 2
    assert "requests: must be at most 16777216" in capsys.readouterr().err
