"""A Ray of this process alone, and what is said of clusters that cannot be joined."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from blemish.errors import ClusterError, ConfigError, DataError, MissingExtraError
from blemish.scale import cluster

# In a process of its own: a test process joins one Ray, which test_predict_ray.py starts.
_STARTS = """if True:
    import json, os, sys
    import psutil
    from blemish.errors import DataError
    from blemish.scale.cluster import explained, joined

    os.environ["RAY_ADDRESS"] = "192.0.2.1:6379"  # of somebody else: not asked for, not joined

    def listening():
        here = psutil.Process()
        found = set()
        for process in (here, *here.children(recursive=True)):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.add(one.laddr.ip)
        return sorted(found)

    with joined(cpus=3) as found:
        import ray

        @ray.remote
        def work():
            raise DataError("a.csv: has no rows")

        @ray.remote
        def environment():
            return os.environ.get("RAY_USAGE_STATS_ENABLED"), os.environ.get("OMP_NUM_THREADS")

        with joined() as again:
            assert ray.is_initialized() and again.cpus == 3
        told = ray.get(environment.remote())
        try:
            with explained():
                ray.get(work.remote())
        except DataError as error:
            said = [type(error).__name__, str(error)]
        folder = ray._private.worker._global_node.get_temp_dir_path()
        here = listening()
    print(json.dumps({
        "cpus": found.cpus, "nodes": found.nodes, "address": found.address, "listening": here,
        "told": told, "said": said, "left": os.path.exists(folder), "on": ray.is_initialized(),
    }))
"""


def test_a_ray_of_this_process_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STARTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing of Ray's own
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["cpus"], found["nodes"], found["address"]) == (3, 1, "")
    assert found["listening"]
    assert all(ip.removeprefix("::ffff:") == "127.0.0.1" for ip in found["listening"])
    assert found["told"] == ["0", "1"]  # no reports to its makers; a thread for each of its CPUs
    assert found["said"] == ["DataError", "a.csv: has no rows"]
    assert not found["left"]
    assert not found["on"]


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with (
        pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port}: no cluster answers there"),
        cluster.joined(f"127.0.0.1:{port}"),
    ):
        pass
    assert time.monotonic() - began < cluster.REACHED_WITHIN + 5


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("ray://head:10001", "the address of the cluster itself is needed"),
        ("head", "HOST:PORT is needed"),
        ("head:many", "HOST:PORT is needed"),
        (":6379", "HOST:PORT is needed"),
        ("head:70000", "HOST:PORT is needed"),
    ],
)
def test_what_is_no_address(address: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what), cluster.joined(address):
        pass


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = r"Ray is needed to work on a cluster: pip install 'blemish\[ray\]'"
    with pytest.raises(MissingExtraError, match=wanted), cluster.joined():
        pass


def test_errors_of_ray_in_our_words() -> None:
    import ray.exceptions

    inner = ray.exceptions.RayTaskError("f", "Traceback …", ValueError("x"), pid=1, ip="127.0.0.1")
    with (
        pytest.raises(ClusterError, match="the cluster lost what it computed"),
        cluster.explained(),
    ):
        raise ray.exceptions.OwnerDiedError("00" * 28, None, "")
    with pytest.raises(ClusterError, match="ran out of memory"), cluster.explained():
        raise ray.exceptions.OutOfMemoryError("killed")
    mistake = inner.as_instanceof_cause()
    with pytest.raises(ValueError, match="pid=1") as caught, cluster.explained():
        raise mistake  # in a program: it stays as it is
    assert caught.value is mistake
    lacking = ModuleNotFoundError("No module named 'torch'", name="torch")
    with pytest.raises(ClusterError, match="a worker of the cluster: PyTorch is needed"):  # noqa: SIM117
        with cluster.explained():
            raise ray.exceptions.RayTaskError("f", "…", lacking, pid=1, ip="127.0.0.1")
    with pytest.raises(DataError), cluster.explained():
        raise DataError("stays")
