"""Tasks on a Dask cluster: `--executor dask://HOST:PORT`, or tls://HOST:PORT.

The scheduler gives the tasks of a worker that died, or that was not heard of for its `worker-ttl`,
to another one, and each future answers once. Workers may join at any time. A worker evaluates only
what it would price exactly as the process that asks: the same sources of opbyte and the same files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import BrokenExecutor, CancelledError
from functools import lru_cache
from typing import Any

from opbyte.core.errors import ConfigError, OpbyteError, SimulationError
from opbyte.sweeps.backends import ExecutorBackend, evaluator_of, run_task
from opbyte.sweeps.console import Output, counted
from opbyte.sweeps.keys import code_version, digest, resolved
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.portions import Task
from opbyte.sweeps.rows import Rows

__all__ = ["DaskBackend", "serve"]

_ADDRESS = re.compile(r"(dask|tls)://(\[[^\]]+\]|[^:/]+):(\d{1,5})")
_CONNECT_S = 10.0
_CLOSE_S = 5.0
#: How often the number of workers and the connection are looked at.
_LOOK_S = 1.0
#: Without any worker for this long, say so.
_LONELY_S = 10.0
#: The thread in which Dask runs the loop of a client.
_LOOP_THREAD = "IO loop"

_log = logging.getLogger(__name__)


class DaskBackend(ExecutorBackend):
    """Evaluates on the workers of a Dask cluster, however many there are at a time."""

    def __init__(self, plan: Plan, seed_key: str, address: str) -> None:
        """Connect to the scheduler.

        Raises:
            ConfigError: If the address is none, Dask is not installed, or no scheduler answers.
        """
        self._address = _scheduler(address)
        self._client = _client(self._address)
        super().__init__(plan, seed_key, None, 1)
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._proof = (code_version(), _priced(plan))
        self._looked = 0.0
        self._lonely: float | None = None

    def _width(self) -> int:
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self._workers = max(self._present(), 1)
        return self._workers

    def _present(self) -> int:
        """Return the number of workers; say so where there is none for long."""
        if self._client.status != "running":
            raise self._lost(f"the client is {self._client.status}")
        try:
            found = int(self._client.scheduler_info(n_workers=0)["n_workers"])
        except (OSError, KeyError) as error:
            raise self._lost(_reason(error)) from None
        now = time.monotonic()
        if found:
            self._lonely = None
        elif self._lonely is None:
            self._lonely = now
        elif now - self._lonely > _LONELY_S:
            self._lonely = float("inf")
            _log.warning("%s has no worker: waiting for one to join", self._address)
        return found

    def _submit(self, task: Task) -> Any:
        future = self._client.submit(_run_checked, self._blob, self._proof, task, pure=False)
        future.add_done_callback(self._finished.put)
        return future

    def _done(self, flying: Collection[Any]) -> Iterable[Any]:
        while flying:
            with contextlib.suppress(queue.Empty):
                future = self._finished.get(timeout=_LOOK_S)
                if future in flying:
                    return [future]
            self._width()
        return ()

    def _answer(self, future: Any) -> tuple[Rows, float]:
        from distributed.scheduler import KilledWorker

        try:
            answer: tuple[Rows, float] = future.result()
        except KilledWorker:
            raise BrokenExecutor from None
        except OpbyteError:
            raise
        except (CancelledError, OSError) as error:
            if self._client.status == "running":  # the answer went with its worker
                raise BrokenExecutor from None
            raise self._lost(_reason(error)) from None
        except Exception as error:  # noqa: BLE001  whatever a worker lacks
            rule = f"a worker of {self._address} could not run a task ({_reason(error)})"
            raise SimulationError(f"{rule}. Install the same opbyte on all workers.") from None
        return answer

    def _replace(self) -> None:
        """The scheduler has replaced the worker already, or waits for another one."""

    def _lost(self, reason: str = "") -> SimulationError:
        why = f" ({reason})" if reason else ""
        rule = f"the connection to the scheduler {self._address} was lost{why}"
        remedy = "Finished points are stored: start a scheduler and run the same command to go on."
        return SimulationError(f"{rule}. {remedy}")

    def close(self) -> None:
        """Take back what was asked for, and leave the cluster as it is."""
        self._client.close(timeout=_CLOSE_S)


def serve(workers: int | None, host: str, port: int, output: Output, *, tls: bool) -> None:
    """Run a scheduler and workers of one thread each until SIGINT or SIGTERM.

    Args:
        workers: Worker processes; None is one for each core. One that dies is replaced.
        host: Address to listen at.
        port: Port to listen at; 0 is any free one.
        output: Hears the address.
        tls: Whether both sides show certificates, from Dask's configuration.

    Raises:
        ConfigError: If Dask is not installed, or the address or the certificates can not be used.
    """
    distributed = _dask()
    import dask

    dask.config.set({"distributed.worker.profile.enabled": False})
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    protocol = "tls" if tls else "tcp"
    if tls:
        _check_certificates("opbyte cluster", "scheduler", "worker", "client")
    try:
        cluster = distributed.LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, host=host, scheduler_port=port,
            dashboard_address=None, scheduler_kwargs={"dashboard_address": f"{host}:0"},
            protocol=f"{protocol}://",
        )  # fmt: skip
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        rule = f"no scheduler can listen at {protocol}://{host}:{port} ({_reason(error)})"
        remedy = "Choose another --host or --port."
        raise ConfigError.one("opbyte cluster", "", rule, "", remedy) from None
    address = cluster.scheduler_address.replace("tcp://", "dask://")
    output.line(f"--executor {address} ({counted(count, 'worker')} here; Ctrl-C ends the cluster)")
    output.data({"executor": address, "workers": count})
    if not tls and not host.startswith(("127.", "localhost", "::1", "[::1]")):
        output.note(f"whoever reaches {host}:{port} can run programs as you: use --tls")
    sys.stdout.flush()
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    while not ended.wait(_LOOK_S):
        pass
    cluster.close(timeout=_CLOSE_S)


def _scheduler(address: str) -> str:
    """Return the address of a scheduler as Dask writes it.

    Raises:
        ConfigError: If it is none.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        rule = "a cluster is dask://HOST:PORT or tls://HOST:PORT"
        remedy = "Write for example dask://127.0.0.1:8786."
        raise ConfigError.one("--executor", "", rule, address, remedy)
    return f"{'tcp' if match[1] == 'dask' else 'tls'}://{match[2]}:{match[3]}"


def _dask() -> Any:
    """Return the package `distributed`, without its logs, which repeat what our errors say."""
    try:
        import distributed
    except ImportError:
        remedy = 'Install it with `pip install "opbyte[dask]"`.'
        raise ConfigError.one("--executor", "", "dask is not installed", "", remedy) from None
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("asyncio", "tornado.application"):
        logging.getLogger(name).addFilter(_is_not_of_dask)
    return distributed


def _is_not_of_dask(record: logging.LogRecord) -> bool:
    """Return False for what tasks of Dask leave behind, with traces, when their loop ends.

    Other loops in this process, such as that of a notebook, are still heard.
    """
    of_task = f"{os.sep}distributed{os.sep}" in record.getMessage()
    return not of_task and record.threadName != _LOOP_THREAD


def _client(address: str) -> Any:
    distributed = _dask()
    if address.startswith("tls"):
        _check_certificates("--executor", "client")
    try:
        return distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        rule = f"no scheduler answers at {address} ({_reason(error)})"
        remedy = "Start one with `opbyte cluster`; a scheduler with TLS is tls://HOST:PORT."
        raise ConfigError.one("--executor", "", rule, "", remedy) from None


def _check_certificates(where: str, *roles: str) -> None:
    """Raise unless Dask's configuration names the certificates of some roles.

    Raises:
        ConfigError: If it does not, or they can not be read.
    """
    import dask

    names = ["ca-file", *(f"{role}.{part}" for role in roles for part in ("cert", "key"))]
    keys = [f"distributed.comm.tls.{name}" for name in names]
    missing = [key for key in keys if not dask.config.get(key, None)]
    if missing:
        example = "DASK_" + missing[0].upper().replace(".", "__").replace("-", "_")
        rule = f"TLS needs certificates; Dask's configuration lacks {', '.join(missing)}"
        raise ConfigError.one(where, "", rule, "", f"Set for example {example}=FILE.")
    try:
        for role in roles:
            _dask().Security().get_connection_args(role)
    except OSError as error:
        rule = f"the certificates of TLS can not be read ({_reason(error)})"
        raise ConfigError.one(where, "", rule, "", f"Look at {', '.join(keys)}.") from None


def _reason(error: BaseException) -> str:
    """Return what an error that Dask has wrapped began with, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _priced(plan: Plan) -> str:
    """Return a hash of everything that decides what a point costs: study, machines, files."""
    data = resolved(plan)
    return digest({k: v for k, v in data.items() if k not in ("strategy", "objectives")})


def _run_checked(blob: bytes, proof: tuple[str, str], task: Task) -> tuple[Rows, float]:
    _check(blob, proof)
    return run_task(blob, task)


@lru_cache(maxsize=4)
def _check(blob: bytes, proof: tuple[str, str]) -> None:
    """Raise unless this worker prices as the process that asks; once for each study.

    Raises:
        ConfigError: If its opbyte or its files differ.
    """
    where = f"the worker on {socket.gethostname()}"
    if code_version() != proof[0]:
        rule = f"{where} runs another version of opbyte"
        raise ConfigError.one("--executor", "", rule, "", "Install the same on all workers.")
    remedy = "Give all workers the same files, and start them in the same folder."
    try:
        same = _priced(evaluator_of(blob).plan) == proof[1]
    except OpbyteError as error:
        rule = f"{where} can not read this study ({error})"
        raise ConfigError.one("--executor", "", rule, "", remedy) from None
    if not same:
        rule = f"{where} reads other machines or files than this process"
        raise ConfigError.one("--executor", "", rule, "", remedy)
