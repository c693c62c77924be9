"""Mistakes of one file are told together, whichever check finds them, and none that only follows.

Each row is a file with several mistakes and all that is told about it: line, and words.
"""

import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.experiment import load_experiment
from opbyte.sweeps.explain import explained
from opbyte.sweeps.study import load_study

STUDY = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
"""

STUDIES = {
    "nothing of the base is known": (
        """\
kind: study
base:
  machine: sn40l-nod
  workload: {kind: decode, model: llama-3.1-8, batch: 0, context: 4096}
axes:
  machine.rdu.hbm.phy.bandwith: [1 TB/s, 2 TB/s]
  mapping.fusion: [none, leyer]
objectives: {tokens_per_sec: max}
""",
        [(3, "'sn40l-node'"), (4, "'llama-3.1-8b'"), (4, "batch must be at least 1"),
         (7, "'layer'"), (8, "'tokens_per_s'")],
    ),
    "words of the format and names": (
        STUDY + """\
colour: red
fidelity: anlytic
axes:
  machine.rdu.hbm.phy.bandwith: [1 TB/s, 2 TB/s]
  workload.bach: [1, 2]
  workload.context: {valuse: [64]}
constraints: [tpot <= 3 GiB]
objectives: {tokens: max, workload.context: min, workload.bach: max}
strategy: {kind: gird}
""",
        [(5, "no key is called 'colour'"), (6, "'analytic'"), (8, "'bandwidth'"), (9, "'batch'"),
         (10, "'values'"), (11, "GiB"), (12, "no metric 'tokens'"), (13, "'grid'")],
    ),
    "an unknown work": (
        """\
kind: study
base: {machine: sn40l-node, workload: {kind: decod}, foo: 1}
axes:
  workload.batch: [1, 2]
  machine.rdu.hbn.capacity: [1 GiB]
  mapping: [default, nope]
derive: {machine.rdu.hbm.capacity: "2 * workload.batch +", machine.rdu.ddr.capacity: 2 * speed}
objectives: {tokens_per_s: max}
constraints: [tpot]
""",
        [(2, "'decode'"), (2, "no key is called 'foo'"), (5, "'hbm'"), (6, "no such mapping"),
         (7, "+"), (7, "got speed"), (9, "a constraint must be")],
    ),
    "a list": (
        STUDY + """\
strategy:
  kind: list
  points:
    - {workload.batch: 0, mapping.fusion: none, speed: 1}
    - {workload.batch: 2, mapping.fusion: leyer}
objectives: {tokens: max}
""",
        [(7, "batch must be"), (7, "a path must start with"), (7, "'layer'"),
         (9, "this one lacks speed"), (10, "no metric 'tokens'")],
    ),
    "conditions on what is wrong": (
        STUDY + """\
axes:
  workload.bach: [1, 2]
  workload.context: {values: [64, 128], when: {workload.bach: 2}}
  machine.rdu.hbm.phy.bandwidth: [1 GB]
derive: {machine.rdu.ddr.phy.bandwidth: 2 * machine.rdu.hbm.phy.bandwidth}
objectives: {machine.rdu.hbm.phy.bandwidth: min, speedup: max}
baseline: {machine: 5}
""",
        [(6, "'batch'"), (8, "bandwidth is due"), (11, "baseline")],
    ),
    "set, mapping and baseline": (
        """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 9000000}
  mapping: {fusion: leyer, launch: 3, run: [{ops: all, unit: pcu}]}
  set:
    machine.rdu.hbm.phy.bandwith: 2 TB/s
    machine.rdu.hbm.capacity: 2 TB/s
    workload.bach: 2
axes: {machine.rdu.ddr.capacty: [1 TiB]}
baseline: {machine: dgx-h10, workload: {batch: 0}}
""",
        [(4, "context of at most"), (5, "'layer'"), (5, "must be text"), (7, "'bandwidth'"),
         (8, "a size is due"), (9, "'batch'"), (10, "'capacity'"), (11, "'dgx-h100'"),
         (11, "batch must be")],
    ),
    "serving": (
        """\
kind: study
base:
  machine: dgx-h10
  workload:
    kind: serve
    model: llama-3.1-8
    trace: {kind: trace, requests: 0, arrivals: {kind: poison}, lengths: {input: 1}}
    scheduler: {knd: continuous}
    rate: fast
    slo: 3
    fleet: {router: robin}
axes: {machine.gpu.count: [1, 2]}
objectives: {goodput: max}
""",
        [(3, "'dgx-h100'"), (6, "'llama-3.1-8b'"), (7, "requests"), (7, "'poisson'"),
         (7, "both input and output"), (8, "'kind'"), (9, "rate must be"), (10, "slo must be"),
         (11, "router"),
         (13, "'goodput_per_s'")],
    ),
}  # fmt: skip

EXPERIMENTS = {
    "inference": (
        """\
kind: experiment
machine: sn40l-nod
workload:
  kind: prefill
  model: llama-3.1-8b
  batch: 0
  input: many
  logits: first
  precision: {wieght: int4, kv: fp9}
mapping: {fusion: leyer, run: [{ops: all, unit: pcu}]}
fidelity: exact
set: {machne.rdu.count: 4}
""",
        [(2, "'sn40l-node'"), (6, "batch must be"), (7, "many"), (8, "logits must be"),
         (9, "'weight'"), (9, "'fp8'"), (10, "'layer'"), (11, "fidelity"), (12, "'machine'")],
    ),
    "training": (
        """\
kind: experiment
workload:
  kind: train
  model: gpt-3
  batch: 0
  sequence: 2048
  recompute: some
  gradient: fp8
  lora: {rnk: 16}
  clip: 3
mapping: ./absent.yaml
""",
        [(1, "a machine is missing"), (4, "no model is called"), (5, "batch must be"),
         (7, "recompute must be"), (8, "gradient must be"), (9, "'rank'"), (10, "clip must be"),
         (11, "does not exist")],
    ),
    "serving": (
        """\
kind: experiment
machine: dgx-h100
workload: {kind: serve, model: llama-3.1-8b, trace: ./absent.csv, rate: -1, speculate: 2}
mapping: tensor-paralel
fidelity: bound
""",
        [(3, "absent.csv"), (3, "rate must be"), (3, "speculate"), (4, "no such mapping"),
         (5, "bound")],
    ),
}  # fmt: skip

MACHINE = """\
kind: machine
name: mine
parts:
  gpu:
    count: 2
    memory:
      hbm: {capacity: 80 GB/s, ports: {phy: {bandwidth: 2 TB/s}}}
      sram: {capacity: 1 MiB, kind: srm, ports: {out: {bandwidth: 2 TB/s}}}
    units:
      core: {kind: tiled_matrix, at: hbm.phi, peak: {bf17: 1 TFLOP/s}}
      other: {kind: tiled_matrix, at: [hbm.phy, sram.out], serial: 3, buffer: 4}
links:
  net: {ends: [gpu, gpx], bandwidth: 100 GB/s}
  bus: {ends: [gpu.hbm.phy, gpu.sram.in], bandwith: 100 GB/s}
mappings:
  default:
    groups: {all: gpu}
    fusion: leyer
    parallel: {dense: {group: al}}
    place: {wieght: {in: {gpu.hbm: 1}}}
    run: [{ops: all, unit: gpu.core}]
site: {grid: 3}
foo: bar
"""

FILES = {
    "a machine": (
        MACHINE,
        [(7, "a size is due"), (8, "'sram'"), (10, "hbm.phi"), (10, "'bf16'"), (11, "mapping"),
         (11, "text"), (13, "'gpu'"), (14, "'bandwidth'"), (14, "'gpu.sram.out'"),
         (18, "'layer'"), (19, "'all'"), (20, "'weight'"), (22, "grid"), (23, "'foo'")],
    ),
    "a machine that extends nothing": (
        "kind: machine\nextends: sn40l-nod\nfoo: bar\nlinks: {p2p: {bandwidth: 3}}\n",
        [(2, "'sn40l-node'"), (3, "no key is called 'foo'"), (4, "unit")],
    ),
    "a machine of relatives": (
        """\
kind: machine
name: m
foo: bar
parts:
  gpu: {like: dgx-h100.gpx, count: two}
  cpu: {count: two}
links: {net: {ends: [gpu, cpu], bandwidth: 3 GB}}
""",
        [(3, "'foo'"), (5, "gpx"), (6, "whole number"), (7, "bandwidth is due")],
    ),
    "a model": (
        """\
kind: model
nme: x
source: 5
published: {paramters: 1}
dtypes: {wieght: int4, kv: fp9}
config: {model_type: llama, hidden_size: 64, num_attention_heads: 4, num_hidden_layers: two,
  vocab_size: 32, intermediate_size: 64, foo: 3}
""",
        [(2, "'name'"), (3, "a text is due"), (4, "'parameters'"), (5, "'weight'"), (5, "'fp8'"),
         (6, "whole number"), (7, "unread field")],
    ),
    "a model that extends nothing": (
        "kind: model\nextends: llama-3.1-8x\nnme: x\n", [(2, "'llama-3.1-8b'"), (3, "'name'")]
    ),
    "a mapping": (
        """\
kind: mapping
extends: ./nope.yaml
fusoin: none
fusion: leyer
launch: 3
run: [{ops: all, unit: a}]
""",
        [(2, "does not exist"), (3, "'fusion'"), (4, "'layer'"), (5, "must be text")],
    ),
}  # fmt: skip


def told(path, read):
    """Return what reading a file tells, as line and text."""
    with pytest.raises(ConfigError) as error:
        read(path)
    problems = error.value.problems
    assert len(set(problems)) == len(problems)
    for problem in problems:
        assert problem.where.startswith(f"{path}:"), problem
    return [(int(p.where.split(":")[1]), str(p).partition(": ")[2]) for p in problems]


def check(folder, read, text, expected):
    path = folder / "f.yaml"
    path.write_text(text)
    found = told(path, read)
    shown = "\n".join(map(str, found))
    assert [line for line, _ in found] == [line for line, _ in expected], shown
    for line, words in expected:
        assert any(at == line and words in text for at, text in found), (line, words, shown)


@pytest.mark.parametrize("name", STUDIES)
def test_of_a_study(tmp_path, name):
    check(tmp_path, load_study, *STUDIES[name])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_of_an_experiment(tmp_path, name):
    check(tmp_path, load_experiment, *EXPERIMENTS[name])


@pytest.mark.parametrize("name", FILES)
def test_of_a_file_of_another_kind(tmp_path, name):
    check(tmp_path, lambda path: explained(str(path)), *FILES[name])


def test_a_machine_that_the_study_writes_has_its_mistakes_told(tmp_path):
    text = STUDY.replace(
        "sn40l-node", "{extends: sn40l-node, foo: 1, links: {p2p: {ends: [rdu, x]}}}"
    )
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no key is called 'foo'") as error:
        load_study(path)
    assert "must name parts or ports, got x" in str(error.value)
