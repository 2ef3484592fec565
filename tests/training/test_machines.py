"""A training on two machines, as far as one has them: torchrun at two local addresses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from parts import FIT

import blemish


@pytest.mark.slow
def test_torchrun_at_two_addresses(good_folder: Path, tmp_path: Path) -> None:
    """As docs/scale.md has it: the same command on both, the artifact on the first."""
    with socket.socket() as one:
        one.bind(("127.0.0.2", 0))
        port = one.getsockname()[1]
    settings = "--device cpu --set epochs=1 --set min_steps=6 --set train_batch_size=4"
    started = []
    for rank, address in enumerate(("127.0.0.2", "127.0.0.1")):
        folder = tmp_path / f"machine{rank}"
        folder.mkdir()
        where = f"--nnodes 2 --node-rank {rank} --nproc-per-node 1 --local-addr {address}"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", *where.split()),
            *("--master-addr", "127.0.0.2", "--master-port", str(port)),
            *("-m", "blemish", "fit", "agpnet", str(good_folder), "-o", "part.blemish"),
            *(*FIT.split(), *settings.split()),
        ]
        started.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [each.communicate(timeout=600)[0] for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    training = blemish.load(tmp_path / "machine0" / "part.blemish").record.training
    assert training is not None
    assert (training.processes, training.steps) == (2, 6)
    assert [*(tmp_path / "machine1").iterdir()] == []
    assert "Written: part.blemish" in said[0]
    assert "Written" not in said[1]
