"""Dask clusters of real processes on this machine, started by command."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

#: Nothing asks the network for anything, and nobody waits longer than that.
PATIENCE_S = 180


class Cluster:
    """A scheduler on a free port of the loopback, and workers of one thread without a nanny."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self._env = {**os.environ, **settings}
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._started_scheduler(0)

    def _run(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments],
                stdout=log, stderr=log, env=self._env, cwd=self.folder,
            )  # fmt: skip

    def _started_scheduler(self, port: int) -> subprocess.Popen[bytes]:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        arguments = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard",
                     "--dashboard-address", "127.0.0.1:0")  # fmt: skip
        process = self._run("scheduler", *arguments, "--scheduler-file", str(file))
        address = ""
        end = time.monotonic() + PATIENCE_S
        while not address:
            assert process.poll() is None, "the scheduler ended"
            assert time.monotonic() < end
            with contextlib.suppress(OSError, ValueError):
                address = json.loads(file.read_text())["address"]
            time.sleep(0.05)
        self.port = int(address.rpartition(":")[2])
        self.executor = f"dask://127.0.0.1:{self.port}"
        return process

    def restart(self) -> None:
        """Start a scheduler at the same address after the last one was killed."""
        self.scheduler = self._started_scheduler(self.port)

    def add(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        worker = self._run(
            "worker", f"tcp://127.0.0.1:{self.port}", "--no-dashboard", "--nthreads", "1",
            "--memory-limit", "0", "--death-timeout", "60",
            "--local-directory", str(self.folder / "workers"), *(arguments or ("--no-nanny",)),
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End what still runs."""
        for process in (*self.workers, self.scheduler):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
            process.wait(timeout=60)


def kill(process: subprocess.Popen) -> None:
    """End a process as the kernel would when memory runs out."""
    process.kill()
    process.wait(timeout=60)
