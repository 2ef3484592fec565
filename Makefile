# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = build/demo

.PHONY: install install-newest lock test check docs demo clean

# The versions that were tried, file by file, as requirements.lock names them.
install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Instead of them the newest that pyproject.toml allows, tried or not.
install-newest:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[export,serve,telemetry,ray,offline,demo,medical,docs,dev]'
	touch $(VENV)/installed

# Writes requirements.lock for every system and Python. It keeps the versions that are there, as far
# as pyproject.toml allows them; `make lock UPGRADE=--upgrade` takes the newest. Then `make check`.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
		--all-extras --generate-hashes --no-annotate --custom-compile-command 'make lock' \
		--output-file requirements.lock $(UPGRADE) pyproject.toml > /dev/null

# The default suite: no network, no data set, no GPU. A process for every core, each with one thread.
test check: export OMP_NUM_THREADS ?= 1
test: install
	$(BIN)/python -m pytest

# What computes, and the kernels of other processors and thread counts to compute it with.
NUMERIC = tests/anomalies tests/backbones tests/losses tests/methods tests/metrics tests/training \
	tests/detector/test_contract.py tests/bench/test_costs.py tests/detector/test_fit.py tests/test_out_of_memory.py \
	tests/detector/test_fit_categories.py tests/detector/test_regions_of_pictures.py \
	tests/detector/test_within_areas.py tests/test_find_regions.py tests/detector/test_of_tiles.py \
	tests/detector/test_resize.py tests/detector/test_of_foregrounds.py tests/data/test_tiling.py \
	tests/detector/test_scoring.py tests/detector/test_fit_student.py tests/engines tests/export
AVX2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
# Two threads, so one test at a time: threads that wait for a busy core by spinning take ten times as long.
PLAIN = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest
	env $(AVX2) $(BIN)/python -m pytest $(NUMERIC)
	env $(PLAIN) $(BIN)/python -m pytest -n 1 $(NUMERIC)

# The main job on real pictures: solar cells and a backbone that both come from PyPI. A part of the
# cells and half of the usual bank, to be done within minutes on two slow cores; DEMO_CELLS= (empty)
# takes all of the cells.
DEMO_CELLS ?= 250
demo: install
	$(BIN)/blemish data elpv -o $(DEMO)/solar.csv $(if $(DEMO_CELLS),--cells $(DEMO_CELLS))
	$(BIN)/blemish fit patchcore $(DEMO)/solar.csv -o $(DEMO)/solar.blemish --backbone focus_vits14 --image-size 224 --set bank_size=8000
	$(BIN)/blemish evaluate $(DEMO)/solar.blemish $(DEMO)/solar.csv --report $(DEMO)/report.html

# The documentation, into build/site; a broken link or reference is an error. The tests build it too.
docs: export NO_MKDOCS_2_WARNING = 1
docs: install
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
