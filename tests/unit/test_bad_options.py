"""Options that can not be meant: an error that names them, before anything long begins."""

import pytest
from stored import add_part

from opbyte.core.errors import ConfigError
from opbyte.sweeps.cli import main
from opbyte.sweeps.front_bands import front_band
from opbyte.sweeps.results import open_results


def refused(capsys, *words):
    assert main(list(map(str, words))) == 2
    return capsys.readouterr().err


def test_a_seed_that_no_generator_takes_is_refused(tmp_path, capsys):
    out = ["--out", tmp_path / "out", "--no-plots", "--quiet"]
    assert "--seed" in refused(capsys, "search", "quick", *out, "--seed", 2**32)
    strategy = f"strategy={{kind: optuna, seed: {2**32}}}"
    assert "strategy.seed" in refused(capsys, "search", "quick", *out, "--set", strategy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("samples", [1, 100_001, 3_000_000_000])
def test_a_band_has_a_number_of_draws_that_can_be_held(tmp_path, samples):
    add_part(tmp_path, range(4))
    with pytest.raises(ConfigError, match=f"2 to 100,000 draws, got {samples}"):
        front_band(open_results(tmp_path), samples=samples)


def test_a_memory_that_no_query_may_have_is_refused(tmp_path, capsys):
    pytest.importorskip("duckdb")
    add_part(tmp_path, range(4))
    text = refused(capsys, "query", tmp_path, "select 1", "--memory", "1e300 B")
    assert text.startswith("error: memory: DuckDB refuses it")
    assert "2 GiB" in text


def test_facts_without_any_source_are_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert str(folder) in refused(capsys, "validate", "--facts", folder)


def test_a_dashboard_that_can_not_be_written_is_refused_before_the_search(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    for file in (tmp_path / "taken", tmp_path / "nowhere" / "file"):
        text = refused(
            capsys, "search", "quick", "--out", tmp_path / "out", "--dashboard", file, "--quiet"
        )
        assert str(file) in text
    assert not (tmp_path / "out").exists()
