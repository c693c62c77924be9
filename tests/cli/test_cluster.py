"""Studies on a Dask cluster: the same points, whatever happens to its processes."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from clusters import PATIENCE_S, Cluster, kill
from costly import costly_study

from opbyte.core.errors import ConfigError
from opbyte.sweeps.cluster import _check
from opbyte.sweeps.pareto import front
from opbyte.sweeps.store import open_results
from opbyte.sweeps.study import load_study

pytest.importorskip("distributed")

PROGRAM = [sys.executable, "-m", "opbyte"]

QUICK = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
axes:
  machine.rdu.hbm.phy.bandwidth: {range: [1 TB/s, 4 TB/s], steps: 40}
  workload.batch: {log2: [1, 64]}
  mapping.fusion: [none, layer]
objectives: {tokens_per_s: max, joules_per_token: min, price_usd: min}
"""


def opbyte(*arguments, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=2 * PATIENCE_S, **more,
    )  # fmt: skip


def refused(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def parts_of(folder: Path) -> set[Path]:
    return set((folder / "points").glob("part-*.parquet"))


def wait_for_part(process: subprocess.Popen, folder: Path, known: set[Path]) -> None:
    end = time.monotonic() + PATIENCE_S
    while parts_of(folder) <= known:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def ids_in(folder: Path) -> list[int]:
    """Return the ids of all rows of all parts, doubled ones too."""
    return sorted(
        pd.concat(pd.read_parquet(p, columns=["point"]) for p in parts_of(folder))["point"]
    )


def front_bytes(folder: Path) -> bytes:
    results = open_results(folder)
    return front(results.frame(), results.objectives).to_csv(index=False).encode()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    for _ in range(2):
        cluster.add()
    yield cluster
    cluster.close()


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(costly_study(requests=60, counts=5, rates=4))
    return file


@pytest.mark.parametrize("command", ["sweep", pytest.param("search", marks=pytest.mark.proof)])
def test_the_front_has_the_same_bytes_on_1_2_and_4_workers_and_on_a_cluster(
    cluster, tmp_path, command
):
    file = tmp_path / "s.yaml"
    file.write_text(QUICK)
    fronts = {}
    for name in ("1", "2", "4", cluster.executor):
        where = ("--executor", name) if "://" in name else ("--workers", name)
        out = tmp_path / f"out{len(fronts)}"
        more = ("--budget", "60", "--seed", "3") if command == "search" else ()
        done = opbyte(command, file, "--out", out, "--no-plots", "--quiet", *where, *more)
        assert done.returncode == 0, done.stderr
        fronts[name] = front_bytes(out)
        assert len(ids_in(out)) == (560 if command == "sweep" else 60)
    assert len(set(fronts.values())) == 1
    assert fronts["1"].count(b"\n") > 5


def test_points_outlive_workers_and_the_scheduler(tmp_path, study):
    """Workers join late and die, the scheduler dies: an error, and the rest of the points later."""
    cluster = Cluster(tmp_path)
    out = tmp_path / "out"
    arguments = ["sweep", str(study), "--out", str(out), "--no-plots"]
    try:
        process = subprocess.Popen(
            [*PROGRAM, *arguments, "--executor", cluster.executor],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = cluster.add()
        wait_for_part(process, out, set())
        cluster.add()
        kill(first)
        wait_for_part(process, out, parts_of(out))
        kill(cluster.scheduler)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        cluster.close()
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert f"scheduler tcp://127.0.0.1:{cluster.port} was lost" in errors
    assert "run the same command" in errors
    stored = ids_in(out)
    assert 0 < len(stored) < 200
    assert opbyte(*arguments, "--workers", "1").returncode == 0
    assert ids_in(out) == list(range(200))
    expected = load_study(study).run(tmp_path / "whole", workers=1).frame()
    pd.testing.assert_frame_equal(open_results(out).frame(), expected, check_exact=True)


@pytest.mark.proof
def test_a_worker_that_does_not_answer_loses_its_points_to_another(tmp_path, study):
    cluster = Cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s")
    out = tmp_path / "out"
    try:
        silent = cluster.add()
        process = subprocess.Popen(
            [*PROGRAM, "sweep", str(study), "--out", str(out), "--no-plots",
             "--executor", cluster.executor],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_part(process, out, set())
        silent.send_signal(signal.SIGSTOP)
        cluster.add()
        _, errors = process.communicate(timeout=2 * PATIENCE_S)
        silent.send_signal(signal.SIGCONT)
    finally:
        cluster.close()
    assert process.returncode == 0, errors
    assert ids_in(out) == list(range(200))
    expected = load_study(study).run(tmp_path / "whole", workers=1).frame()
    pd.testing.assert_frame_equal(open_results(out).frame(), expected, check_exact=True)


DEADLY = """\
import os
import signal

import numpy as np

import opbyte.sweeps.evaluate as module

# Dask may execute this file twice in one process.
plain = getattr(module.evaluate, "plain", module.evaluate)


def deadly(machine, work, *rest):
    if np.any(np.asarray(work.context) == 300.0):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(machine, work, *rest)


deadly.plain = plain
module.evaluate = deadly
"""


@pytest.mark.proof
def test_a_point_that_kills_the_workers_of_a_cluster_is_a_failed_row(tmp_path):
    cluster = Cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    (tmp_path / "deadly.py").write_text(DEADLY)
    study = load_study(
        {
            "kind": "study",
            "base": {
                "machine": "sn40l-node",
                "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 8},
            },
            "axes": {"workload.context": [100, 200, 300, 400, 500]},
        }
    )
    try:
        cluster.add("--nanny", "--preload", str(tmp_path / "deadly.py"))
        frame = study.run(tmp_path / "out", executor=cluster.executor).frame()
    finally:
        cluster.close()
    assert frame["status"].tolist() == ["ok", "ok", "failed", "ok", "ok"]
    assert "worker process died" in frame["reason"][2]


def test_a_worker_that_reads_other_files_is_refused(cluster, tmp_path):
    (tmp_path / "mine.yaml").write_text("kind: machine\nextends: sn40l-node\n")
    (tmp_path / "s.yaml").write_text(QUICK.replace("machine: sn40l-node", "machine: mine.yaml"))
    run = ("sweep", "--no-plots", "--quiet", "--executor", cluster.executor)
    done = opbyte(*run, "s.yaml", "--out", "a", cwd=tmp_path)
    refused(done, "the worker on", "can not read this study", "same folder")
    done = opbyte(*run, tmp_path / "s.yaml", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr


LEAVES = """\
import asyncio
import gc
import logging
import sys
import time

from opbyte.sweeps.cluster import _client

client = _client(sys.argv[1])
future = client.submit(time.sleep, 60)


async def leave():
    asked = asyncio.ensure_future(client._gather([future]))
    await asyncio.sleep(0.1)
    asked.cancel()  # as when the run is interrupted: nobody asks for its parts any more
    client.futures[future.key].cancel()
    del asked
    asyncio.get_running_loop().create_task(fail())
    client.loop.add_callback(lambda: 1 / 0)
    await asyncio.sleep(0.1)


async def fail():
    raise OSError("nobody asks for this")


client.sync(leave)
client.close()
del future
gc.collect()
logging.getLogger("asyncio").error("from another loop")
"""


def test_an_interrupted_run_leaves_no_trace_of_the_tasks_of_dask(cluster):
    address = cluster.executor.replace("dask", "tcp")
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, address], capture_output=True, text=True, check=False,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "from another loop\n"


def test_a_worker_checks_version_and_files_before_it_prices_anything():
    plan = load_study("quick").plan
    blob = pickle.dumps((plan.document, "key"))
    with pytest.raises(ConfigError, match="another version of opbyte"):
        _check(blob, ("other", ""))
    from opbyte.sweeps.keys import code_version

    with pytest.raises(ConfigError, match="other machines or files"):
        _check(blob, (code_version(), "other"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("dask:127.0.0.1:8786", ["dask://HOST:PORT"]),
        ("dask://", ["dask://127.0.0.1:8786"]),
        ("dask://nowhere", ["dask://HOST:PORT", "nowhere"]),
        ("http://127.0.0.1:80", ["dask://HOST:PORT"]),
        ("dask://127.0.0.1:1", ["no scheduler answers at tcp://127.0.0.1:1", "opbyte cluster"]),
    ],
)
def test_an_address_without_a_scheduler_is_one_clear_error(tmp_path, study, address, words):
    refused(opbyte("sweep", study, "--executor", address, "--out", tmp_path / "out"), *words)


def certificates(folder: Path) -> dict[str, str]:
    """Return the settings of a self-signed certificate that everybody shows and trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates of this test and is not installed")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=opbyte", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(certificate)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(certificate)
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(key)
    return settings


def listens_at(port: int) -> set[str]:
    """Return the addresses at which this machine listens at a port, as the kernel writes them."""
    found = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def test_a_cluster_of_ours_is_on_the_loopback_and_encrypts(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(QUICK)
    env = {**os.environ, **certificates(tmp_path)}
    cluster = subprocess.Popen(
        [*PROGRAM, "cluster", "--workers", "1", "--port", "0", "--tls"],
        stdout=subprocess.PIPE, env=env, text=True,
    )  # fmt: skip
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().split()[1]
        assert address.startswith("tls://127.0.0.1:")
        assert listens_at(int(address.rpartition(":")[2])) == {"0100007F"}
        run = ("sweep", file, "--no-plots", "--quiet", "--out", tmp_path / "out", "--executor")
        refused(opbyte(*run, address), "TLS")
        done = opbyte(*run, address, env=env)
        assert done.returncode == 0, done.stderr
        assert len(open_results(tmp_path / "out").frame()) == 560
    finally:
        cluster.terminate()
        cluster.communicate(timeout=60)
    assert cluster.returncode == 0


def test_a_cluster_without_certificates_or_address_is_one_clear_error():
    refused(
        opbyte("cluster", "--tls", "--port", "0", "--workers", "0"),
        "TLS", "certificates", "DASK_DISTRIBUTED__COMM__TLS__CA_FILE",
    )  # fmt: skip
    refused(opbyte("cluster", "--host", "192.0.2.1", "--workers", "0"), "192.0.2.1")
