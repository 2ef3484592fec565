"""What reading a big picture in windows takes in memory, as the system sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from made import tiff

CODE = """
import json, re, sys
from pathlib import Path
from blemish.images import open_windows, windows
windows._KEPT = 2**24

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

with open_windows(sys.argv[2], in_memory=1) as small:
    small.read(slice(0, 9), slice(0, 9))  # what is loaded lazily
found = []
for path in sys.argv[3:]:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with open_windows(path, in_memory=10**6) as big:
        assert not big.whole
        for top in range(0, big.size[0], int(sys.argv[1])):
            for left in range(0, big.size[1], 448):
                big.read(slice(top, top + 448), slice(left, left + 448))
    found.append(status("VmHWM") - before)
print(json.dumps(found))
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell a peak"
)
def test_a_big_picture_takes_little_memory(tmp_path):
    """192 MB of pixels, in tiles as they are, and in deflated strips."""
    side = 8000
    rng = np.random.default_rng(11)
    tile = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    tiles = (tile ^ np.uint8(place % 251) for place in range(32 * 32))
    strip = np.broadcast_to(np.arange(side)[None, :, None] // 40, (64, side, 3))
    coded = zlib.compress(strip.astype(np.uint8).tobytes(), 1)
    options = {"shape": (side, side, 3), "dtype": np.uint8, "photometric": "rgb"}
    paths = [tmp_path / name for name in ("tiles.tif", "strips.tif", "small.tif")]
    paths[0].write_bytes(tiff(tiles, tile=(256, 256), **options))
    paths[1].write_bytes(
        tiff((coded for _ in range(0, side, 64)), rowsperstrip=64, compression="zlib", **options)
    )
    paths[2].write_bytes(tiff(tile[:40, :50], photometric="rgb", compression="zlib"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(10**6)}
    command = [sys.executable, "-c", CODE, "1344", str(paths[2]), str(paths[0]), str(paths[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    assert max(peaks) < 50 * 2**20
    assert max(peaks) > 2**23  # it does measure
