# Every target sets itself up: a fresh machine needs Python >= 3.10 and git, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test test-all check figures tutorials docs clean

demo: $(READY)  ## train an edit, take it apart, draw it: demo/report.html
	$(BIN)/reftlens demo --out demo

test: check  ## what CI runs
	$(BIN)/python -m pytest -q

test-all: check  ## the slow tests as well
	$(BIN)/python -m pytest -q -m "slow or not slow"

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 10) else "reftlens needs Python 3.10 or newer, this is %d.%d: set PYTHON=" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

figures: demo  ## the README's pictures
	mkdir -p figures
	cp demo/figures/effect.png demo/figures/tracing.png demo/figures/outcomes.png demo/figures/readout.png demo/figures/spectrum.png figures/
	cp demo/figures/dissect_dose.png figures/dose.png
	cp demo/figures/dissect_interchange.png figures/interchange.png

# One thread: on models this small a second one waits more than it works, and a rerun gives the same numbers.
tutorials: $(READY)  ## runs every notebook from start to end; fails on an error or a failed check
	OMP_NUM_THREADS=1 HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False tutorials/*.ipynb

docs: $(READY)  ## the API pages, from the docstrings: docs/index.html
	$(BIN)/python tests/api_pages.py docs

clean:
	rm -rf $(VENV) demo docs
