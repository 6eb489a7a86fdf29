# `make run` and `make test` need Python >= 3.10, make and git; they build their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test test-slow compiled lint links demo clean

run: $(VENV)/run.stamp
	$(BIN)/naiad run -p "Tell me a story about a cat." -n 200 --temp 0.6 --seed 7

test: $(VENV)/dev.stamp
	$(BIN)/pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(VENV)/dev.stamp
	$(BIN)/pytest -m slow

# Every kernel for every architecture, with the Triton of .venv; TRITON=3.6.0 makes an environment for that release.
compiled: $(VENV)/dev.stamp
ifdef TRITON
	$(PYTHON) -m venv $(VENV)/triton-$(TRITON)
	$(VENV)/triton-$(TRITON)/bin/pip install --disable-pip-version-check -q -c constraints.txt triton==$(TRITON) -e .
	$(VENV)/triton-$(TRITON)/bin/python perf/compiled.py
else
	$(BIN)/python perf/compiled.py
endif

lint: $(VENV)/dev.stamp links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p naiad
	$(BIN)/mypy tests perf

links:  ## what `import naiad` looks like on disk, for mypy and pyright
	rm -rf .links && mkdir -p .links/naiad
	cd .links/naiad && ln -s ../../runtime/naiad/* . && ln -s ../../runtime ../../quant ../../loaders ../../triton_kernels .

demo: $(VENV)/dev.stamp  ## trains the bundled demo model again from its seed (about half an hour)
	$(BIN)/python -m naiad.runtime.demo.train

clean:
	rm -rf $(VENV) .links build *.egg-info

$(VENV)/base.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "naiad needs Python >= 3.10, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/run.stamp: $(VENV)/base.stamp pyproject.toml constraints.txt
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp pyproject.toml constraints.txt
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/run.stamp
