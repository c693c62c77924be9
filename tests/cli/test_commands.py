"""Every command as users call it: answers, exit codes, errors without a traceback."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from opbyte.sweeps.cli import COMMANDS, main
from opbyte.sweeps.store import open_results
from opbyte.workloads.traces.load import SAMPLES

PROGRAM = [sys.executable, "-m", "opbyte"]

STUDY = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
axes:
  machine.rdu.hbm.phy.bandwidth: {range: [1 TB/s, 4 TB/s], steps: 4}
  workload.batch: {log2: [1, 8]}
objectives: {tokens_per_s: max, price_usd: min}
"""
EXPERIMENT = """\
kind: experiment
machine: sn40l-node
workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
"""


def opbyte(folder: Path, *arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **more,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "s.yaml").write_text(STUDY)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path


def answer(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("error: ", "Usage: "))
    for word in words:
        assert word in done.stderr
    return done.stderr


def test_help_lists_every_command_and_is_quick(tmp_path):
    seconds = []
    for _ in range(5):
        before = os.times()
        done = opbyte(tmp_path, "--help")
        after = os.times()
        spent = after.children_user + after.children_system
        seconds.append(spent - before.children_user - before.children_system)
        assert done.returncode == 0
        for name in COMMANDS:
            assert name in done.stdout
    assert statistics.median(seconds) <= 0.3


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import json, sys\n"
        "from opbyte.sweeps.cli import main\n"
        "main(['--help'])\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded.isdisjoint({"numpy", "pandas", "matplotlib", "numba", "optuna", "pyarrow"})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(tmp_path, name):
    done = opbyte(tmp_path, name, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_version(tmp_path):
    import opbyte as package

    assert opbyte(tmp_path, "--version").stdout.strip() == f"opbyte {package.__version__}"


def test_sweep_stores_a_row_for_each_point_and_prints_the_front(folder):
    done = opbyte(folder, "sweep", "s.yaml", "--no-plots")
    assert done.returncode == 0, done.stderr
    assert "16 points: 16 ok" in done.stdout
    assert "tokens_per_s" in done.stdout
    frame = open_results(folder / "results" / "s").frame()
    assert len(frame) == 16
    assert frame["machine.rdu.hbm.phy.bandwidth"].max() == 4e12


def test_sweep_json_and_quiet(folder):
    found = answer(opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json", "--out", "r"))
    assert found["points"] == {"total": 16, "ok": 16, "feasible": 16}
    best = max(found["front"], key=lambda row: row["tokens_per_s"])
    assert best["workload.batch"] == 8
    done = opbyte(folder, "sweep", "s.yaml", "--no-plots", "--quiet", "--out", "r")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sweep_draws_figures(folder):
    found = answer(opbyte(folder, "sweep", "s.yaml", "--json"))
    assert found["plots"]
    for path in found["plots"]:
        assert (folder / path).stat().st_size > 1000


def test_settings_and_fidelity(folder):
    found = answer(
        opbyte(
            folder, "sweep", "s.yaml", "--no-plots", "--json", "--fidelity", "bound",
            "--set", "workload.context=64", "--set", "axes.workload.batch={values: [2]}",
        )
    )  # fmt: skip
    assert found["points"]["total"] == 4
    frame = open_results(folder / "results" / "s").frame()
    assert set(frame["workload.batch"]) == {2.0}
    meta = open_results(folder / "results" / "s").study
    assert meta["fidelity"] == "bound"
    assert meta["base"]["set"] == {"workload.context": 64}


def test_a_second_run_computes_nothing_and_another_study_is_refused(folder):
    answer(opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json"))
    parts = open_results(folder / "results" / "s").parts
    answer(opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json"))
    assert open_results(folder / "results" / "s").parts == parts
    other = ("sweep", "s.yaml", "--no-plots", "--json", "--set", "workload.context=64")
    refused(opbyte(folder, *other), "--out", "--fresh", "workload.context")
    answer(opbyte(folder, *other, "--fresh"))


def test_shards_together_are_the_whole(folder):
    for part in ("1/3", "2/3", "3/3"):
        done = opbyte(folder, "sweep", "s.yaml", "--shard", part, "--out", "shards", "--quiet")
        assert done.returncode == 0, done.stderr
    answer(opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json", "--out", "whole"))
    shards = open_results(folder / "shards").frame()
    assert shards.equals(open_results(folder / "whole").frame())


def test_failed_points_give_exit_code_1_and_infeasible_ones_0(folder):
    done = opbyte(
        folder, "sweep", "s.yaml", "--no-plots", "--json",
        "--set", "axes.workload.batch={values: [1]}", "--set", "workload.context=1000000",
    )  # fmt: skip
    assert done.returncode == 2
    failing = "axes.workload.context={values: [100, 1000000]}"
    done = opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json", "--set", failing, "--out", "f")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["points"]["failed"] == 16
    small = "machine.rdu.hbm.capacity=1 GiB"
    done = opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json", "--set", small, "--out", "i")
    assert answer(done)["points"] == {"total": 16, "infeasible": 16, "feasible": 0}


def test_search(folder):
    found = answer(
        opbyte(folder, "search", "s.yaml", "--trials", "8", "--seed", "1", "--no-plots", "--json")
    )
    assert found["points"]["total"] == 8
    assert found["search"] == {"screen": "none", "played": 8, "budget": 8}
    whole = answer(opbyte(folder, "sweep", "s.yaml", "--no-plots", "--json"))
    assert whole["points"]["total"] == 16


def test_a_search_in_two_levels_says_so(folder):
    options = ("s.yaml", "--fidelity", "event", "--budget", "16", "--no-plots", "--out", "levels")
    done = opbyte(folder, "search", *options)
    assert done.returncode == 0, done.stderr
    for part in ("16 points screened (analytic)", "played (event)", "no other point could join"):
        assert part in done.stdout
    found = answer(opbyte(folder, "search", *options, "--json", "--dashboard", "d.log"))
    assert found["search"]["could_still_join"] == 0
    assert found["search"]["dashboard_trials"] == found["points"]["total"] < 16
    assert (folder / "d.log").stat().st_size > 0


def test_run_prints_metrics_and_breakdown(folder):
    done = opbyte(folder, "run", "e.yaml")
    assert done.returncode == 0, done.stderr
    for word in ("tokens_per_s", "Operators", "rdu.hbm"):
        assert word in done.stdout
    found = answer(opbyte(folder, "run", "e.yaml", "--json"))
    assert found["metrics"]["tpot"] == found["metrics"]["seconds"]
    total = sum(row["share"] for row in found["breakdown"])
    assert total == pytest.approx(1.0)


def test_run_writes_a_timeline_and_a_folder(folder):
    done = opbyte(
        folder, "run", "e.yaml", "--fidelity", "event", "--timeline", "t/out.json", "--out", "r"
    )
    assert done.returncode == 0, done.stderr
    events = json.loads((folder / "t" / "out.json").read_text())["traceEvents"]
    assert any(event["ph"] == "X" for event in events)
    assert (folder / "r" / "breakdown.csv").is_file()


def test_run_of_what_does_not_fit_says_so(folder):
    found = answer(
        opbyte(folder, "run", "e.yaml", "--json", "--set", "machine.rdu.hbm.capacity=1 GiB")
    )
    assert found["status"] == "infeasible"
    assert "rdu.hbm" in found["reason"]


def test_compare_names_what_changed(folder):
    for name, context in (("a", 4096), ("b", 8192)):
        setting = f"workload.context={context}"
        answer(
            opbyte(
                folder, "sweep", "s.yaml", "--no-plots", "--json", "--set", setting, "--out", name
            )
        )
    found = answer(opbyte(folder, "compare", "a", "b", "--json"))
    (change,) = found["config"]
    assert change["path"].endswith("workload.context")
    assert (change["before"], change["after"]) == ("4096", "8192")
    assert found["points"] == {"before": 16, "after": 16, "common": 16}
    assert found["ratios"]["seconds"]["low"] > 1
    assert found["ratios"]["price_usd"]["median"] == 1
    assert "Metrics" in opbyte(folder, "compare", "a", "b").stdout


def test_compare_experiments(folder):
    opbyte(folder, "run", "e.yaml", "--out", "a", "--quiet")
    opbyte(
        folder, "run", "e.yaml", "--out", "b", "--quiet", "--set", "machine.p2p.bandwidth=1 GB/s"
    )
    found = answer(opbyte(folder, "compare", "a", "b", "--json"))
    assert found["ratios"]["seconds"]["median"] > 1
    assert any("p2p" in change["path"] for change in found["config"])


def test_list(tmp_path):
    found = answer(opbyte(tmp_path, "list", "--json"))
    names = {kind: {entry["name"] for entry in entries} for kind, entries in found.items()}
    assert {"sn40l-node", "dgx-h100"} <= names["machines"]
    assert "llama-3.1-8b" in names["models"]
    assert "coe_scaling" in names["studies"]
    assert {"decode", "coe"} <= names["works"]
    assert "bf16" in names["dtypes"]
    assert names["traces"] == {"sample-bursts", "sample-chat"}
    assert {"azure", "mooncake"} <= names["formats"]
    assert {"continuous", "static"} <= names["schedulers"]
    assert all(entry["about"] for entries in found.values() for entry in entries)
    assert set(answer(opbyte(tmp_path, "list", "studies", "--json"))) == {"studies"}
    assert "machines" in opbyte(tmp_path, "list", "machnes").stderr


def test_explain_machine_has_origins_and_totals(folder):
    found = answer(opbyte(folder, "explain", "sn40l-node", "--json"))
    capacity = found["parameters"]["rdu.hbm.capacity"]
    assert capacity["count"] == 8
    assert (
        capacity["total"] == 8 * capacity["value"] == found["totals"]["rdu.hbm capacity"]["value"]
    )
    assert "SN40L" in capacity["source"]
    assert "sn40l-socket.yaml:" in capacity["where"]
    assert found["totals"]["area"]["value"] > 0
    assert "Parameters" in opbyte(folder, "explain", "sn40l-node").stdout


@pytest.mark.parametrize("name", ["s.yaml", "e.yaml", "coe_scaling", "llama-3.1-8b"])
def test_explain_other_things(folder, name):
    done = opbyte(folder, "explain", name)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


def test_schema_accepts_the_files_and_refuses_a_wrong_one(folder):
    import jsonschema
    import yaml

    schema = answer(opbyte(folder, "schema"))
    jsonschema.validate(yaml.safe_load(STUDY), schema)
    jsonschema.validate(yaml.safe_load(EXPERIMENT), answer(opbyte(folder, "schema", "experiment")))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**yaml.safe_load(STUDY), "axis": {}}, schema)
    refused(opbyte(folder, "schema", "studie"), "study")
    traces = answer(opbyte(folder, "schema", "trace"))
    for sample in sorted(SAMPLES.glob("*.yaml")):
        written = yaml.safe_load(sample.read_text())
        jsonschema.validate(written, traces)
        jsonschema.validate({**written, "lengths": {"input": 5, "output": 128}}, traces)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**written, "lenghts": {}}, traces)


def test_report_is_a_page(folder):
    pytest.importorskip("jinja2")
    opbyte(folder, "sweep", "s.yaml", "--no-plots", "--quiet", "--out", "r")
    done = opbyte(folder, "report", "r")
    assert done.returncode == 0, done.stderr
    assert "<html" in (folder / "r" / "report.html").read_text()[:2000].lower()


BAD_FILES = {
    "empty": b"",
    "blank": b"\n\n  \n",
    "comment": b"# nothing\n",
    "list": b"- 1\n- 2\n",
    "text": b"just words\n",
    "binary": bytes(range(256)) * 20,
    "nul": b"kind: study\0\n",
    "latin": "kind: stu\xe9dy\n".encode("latin-1"),
    "utf16": "kind: study\n".encode("utf-16"),
    "huge": b"kind: study\n" + b"# " + b"x" * (5 * 2**20),
    "tabs": b"kind:\tstudy\n\taxes: {}\n",
    "unclosed": b"kind: [study\n",
    "duplicate": b"kind: study\nkind: study\n",
    "alias": b"kind: &a [*a]\n",
    "bomb": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n".encode()
        for i in range(8)
    ),
    "deep": b"kind: " + b"[" * 5000 + b"]" * 5000,
    "unknown kind": b"kind: studie\n",
    "no kind": b"axes: {}\n",
    "null": b"kind: study\nbase: null\n",
    "wrong types": b"kind: study\nbase: 3\naxes: [1]\nobjectives: x\nderive: 4\nconstraints: 5\n",
    "axes null": b"kind: study\nbase: {machine: sn40l-node}\naxes: {machine: null}\n",
    "machine list": b"kind: study\nbase: {machine: [1], workload: {kind: decode}}\n",
    "workload text": b"kind: study\nbase: {machine: sn40l-node, workload: decode}\n",
    "settings": b"kind: study\nbase: {machine: h20, workload: {kind: decode}, set: {a: 1}}\n",
    "number keys": b"1: 2\nkind: study\n",
    "two documents": b"kind: study\n---\nkind: study\n",
}


@pytest.mark.parametrize("command", ["sweep", "search", "run", "explain"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_error(tmp_path, capsys, monkeypatch, command, name):
    from opbyte.sweeps.cli import main

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bad.yaml"
    file.write_bytes(BAD_FILES[name])
    code = main([command, str(file)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert "bad.yaml" in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "absent.yaml"], ["absent.yaml", "does not exist"]),
        (["sweep", "coe_scalling"], ["coe_scaling"]),
        (["sweep", "."], ["folder"]),
        (["sweep", "e.yaml"], ["opbyte run"]),
        (["run", "s.yaml"], ["opbyte sweep"]),
        (["sweep", "s.yaml", "--set", "workload.bach=3"], ["batch"]),
        (["sweep", "s.yaml", "--set", "axis.x=3"], ["axes"]),
        (["sweep", "s.yaml", "--set", "nothing"], ["path=value"]),
        (["sweep", "s.yaml", "--fidelity", "exact"], ["exact", "analytic"]),
        (["sweep", "s.yaml", "--shard", "4/3"], ["I/N"]),
        (["sweep", "s.yaml", "--workers", "0"], ["workers"]),
        (["sweep", "s.yaml", "--workers", "many"], ["workers"]),
        (["sweep", "s.yaml", "--executor", "cloud"], ["cloud", "process"]),
        (["sweep", "s.yaml", "--out", "s.yaml"], ["folder"]),
        (["sweep"], ["STUDY"]),
        (["swep"], ["swep"]),
        (["compare", "a", "b"], ["opbyte sweep"]),
        (["report", "a"], ["opbyte sweep"]),
        (["explain", "dgx-h10"], ["dgx-h100"]),
        (["run", "e.yaml", "--set", "machine.rdu.hbm.phy.bandwidth=3"], ["unit"]),
        (["run", "e.yaml", "--set", "machine=dgx-h10"], ["dgx-h100"]),
    ],
)
def test_a_bad_command_line_is_one_clear_error(folder, arguments, words):
    refused(opbyte(folder, *arguments), *words)


def test_nothing_runs_when_an_objective_is_unknown(folder):
    (folder / "s.yaml").write_text(STUDY.replace("tokens_per_s: max", "ttft: min"))
    refused(opbyte(folder, "sweep", "s.yaml"), "ttft", "s.yaml:8")
    assert not (folder / "results").exists()


def test_a_wrong_work_does_not_hide_what_else_is_wrong(tmp_path, capsys):
    study = tmp_path / "broken.yaml"
    study.write_text(
        "kind: study\n"
        "base:\n"
        "  machine: sn40l-node\n"
        "  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 9 apples}\n"
        "axes:\n"
        "  machine.rdu.hbm.phy.bandwith: {range: [0.8 TB/s, 4 TB/s], steps: 9}\n"
        "  workload.batch: {log2: [1, 256]}\n"
        "objectives: {tokens_per_s: max, latency: min}\n"
        'constraints: ["tpot <= 20"]\n'
    )
    assert main(["sweep", str(study)]) == 2
    said = capsys.readouterr().err
    for part in ("broken.yaml:4:", "broken.yaml:6:", "broken.yaml:8:", "broken.yaml:9:"):
        assert part in said
    assert "Did you mean 'bandwidth'?" in said


def test_a_grid_of_a_thousand_million_points_is_refused_before_anything_runs(tmp_path, capsys):
    study = tmp_path / "huge.yaml"
    axes = "\n".join(
        f"  machine.{p}: {{range: [{r}], steps: 1000}}"
        for p, r in (
            ("rdu.hbm.phy.bandwidth", "1 TB/s, 4 TB/s"),
            ("rdu.pcu.peak.bf16", "100 TFLOP/s, 900 TFLOP/s"),
            ("p2p.bandwidth", "50 GB/s, 400 GB/s"),
        )
    )
    study.write_text(
        "kind: study\nbase: {machine: sn40l-node, workload: {kind: decode, model: llama-3.1-8b, "
        f"batch: 1, context: 64}}}}\naxes:\n{axes}\nobjectives: {{tokens_per_s: max}}\n"
    )
    assert main(["sweep", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "at most 100,000,000 points" in said
    assert "1,000,000,000" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("command", "due"), [("run", "experiment"), ("sweep", "study")])
def test_a_file_of_another_kind_is_named_before_what_it_extends(tmp_path, command, due):
    (tmp_path / "mine.yaml").write_text("kind: machine\nextends: h100-sxm-80gb\nname: mine\n")
    told = refused(opbyte(tmp_path, command, "mine.yaml"), f"a file of kind '{due}' is due")
    assert "mine.yaml:1:1" in told
    assert "extends" not in told
