"""What all tests share: reference data, reproducible hypothesis runs, no network."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

ROOT = Path(__file__).resolve().parents[1]

# No display is needed; set before anything imports matplotlib, and inherited by subprocesses.
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("opbyte", deadline=None, derandomize=True, database=None)
settings.load_profile("opbyte")
# Hypothesis mixes in constants of whatever modules happen to be imported. That depends on the tests
# which a worker ran before: examples would differ from run to run.
providers._get_local_constants = lambda: providers._local_constants


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in tests/benchmarks, so that it is off unless asked for."""
    for item in items:
        if ROOT / "tests" / "benchmarks" in item.path.parents:
            item.add_marker("benchmark")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout's folder."""
    return ROOT


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder of reference data: OPBYTE_REFERENCE, or ../shared beside the checkout."""
    given = os.environ.get("OPBYTE_REFERENCE")
    folder = Path(given) if given else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not a folder (set OPBYTE_REFERENCE)")
    return folder.resolve()


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Let sockets reach this machine only: a test that needs the network is a defect."""

    def local(address: object) -> bool:
        host = address[0] if isinstance(address, tuple) else None
        return host is None or str(host) == "localhost" or str(host).startswith(("127.", "::1"))

    def guarded(method):
        def call(self, address):
            if not local(address):
                self.close()  # the caller expects an OSError and would leak it
                raise RuntimeError(f"tests must not use the network, tried {address!r}")
            return method(self, address)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect), raising=True)
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex), raising=True)
        yield
