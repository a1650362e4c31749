# Every target sets itself up: a fresh machine needs Python >= 3.10 and git, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DOCS := .versions/docs

# A fast core of the tests, for other releases and other machines.
CORE := tests/test_caching.py tests/test_edit.py tests/test_generation.py tests/test_mediation.py tests/test_tokens.py tests/test_training.py
# Compares the arguments and results of every call with their annotations, shapes included. That doubles the time of a test.
SHAPES := --jaxtyping-packages=reftlens,beartype.beartype
# torch is pinned everywhere: without a pin pip takes a build of several gigabytes.
TORCH := $(shell grep '^torch==' constraints.txt)
MACHINES := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 OMP_NUM_THREADS=2
TESTS ?=

.PHONY: demo test shapes test-all test-versions test-wheel test-machines check robustness figures tutorials docs clean

define fresh
	rm -rf .versions/$(1)
	$(PYTHON) -m venv .versions/$(1)
	.versions/$(1)/bin/python -m pip install --quiet '$(TORCH)'
endef

define core
	$(call fresh,$(1))
	.versions/$(1)/bin/python -m pip install --quiet $(2) . pytest pytest-xdist hypothesis
	.versions/$(1)/bin/python -m pytest -q -p no:cacheprovider $(CORE)
endef

demo: $(READY)  ## train an edit, take it apart, draw it: demo/report.html
	$(BIN)/reftlens demo --out demo

test: check docs  ## format, lint, types, documentation and the quick tests
	$(BIN)/python -m pytest -q

shapes: $(READY)  ## the core tests again, with every shape checked; CI runs this too
	$(BIN)/python -m pytest -q $(SHAPES) $(CORE) tests/test_interventions.py tests/test_analysis.py

test-all: check docs  ## the slow tests as well, with every shape checked
	$(BIN)/python -m pytest -q $(SHAPES) -m "slow or not slow"

test-versions:  ## the core tests under the newest releases and under the oldest that are supported; PYTHON= takes another Python
	$(call core,newest,)
	$(call core,oldest,transformers==5.9.0 'numpy==2.0.*' 'pandas==2.2.*')

test-wheel:  ## the demo and the newcomers' scripts from a wheel, without constraints, in another directory
	$(call fresh,wheel)
	rm -rf build  # setuptools would put modules of an earlier build into the wheel, which are gone since
	.versions/wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir .versions/wheel/dist .
	.versions/wheel/bin/python -m pip install --quiet .versions/wheel/dist/*.whl
	cd .versions/wheel && bin/reftlens --help > /dev/null && bin/reftlens demo --quiet --out demo
	for script in tests/newcomers/*.py; do \
		rm -rf .versions/wheel/work; mkdir .versions/wheel/work; \
		(cd .versions/wheel/work && ../bin/python ../../../$$script) || exit 1; \
	done

test-machines: $(READY)  ## the tests (or TESTS=...) as other processors compute, with one thread and two, and with four busy processes
	for setting in $(MACHINES); do \
		echo "$$setting"; env $$setting $(BIN)/python -m pytest -q -p no:cacheprovider $(TESTS) || exit 1; \
	done
	for n in 1 2 3 4; do timeout 3600 $(BIN)/python -c 'while True: pass' & done; \
		$(BIN)/python -m pytest -q -p no:cacheprovider $(TESTS); code=$$?; kill $$(jobs -p); exit $$code

robustness: $(READY)  ## damages each kind of file that is read, and prints what came of it; about four minutes
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/robustness.py

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 10) else "reftlens needs Python 3.10 or newer, this is %d.%d: set PYTHON=" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# One thread, so that a rerun on the same processor gives the same numbers.
figures: $(READY)  ## the README's pictures and numbers; fails if they are not those that were committed
	OMP_NUM_THREADS=1 $(BIN)/reftlens demo --out demo
	$(BIN)/python tests/figures.py demo figures

# The notebook for GPT-2 needs weights that are not here, so its name begins with no number.
# One thread: on models this small a second one waits more than it works, and a rerun gives the same numbers.
tutorials: $(READY)  ## runs every notebook from start to end; fails on an error or a failed check
	OMP_NUM_THREADS=1 HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False tutorials/[0-9]*.ipynb

# The site is made from sources and committed outputs, in an environment of its own: without torch, and without this package.
# Not --quiet, which would also hide the warnings from `strict`.
docs: $(DOCS)/.installed  ## the documentation, docs/index.html: warnings are errors, and every link is followed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build
	$(DOCS)/bin/python tutorials/site/check.py docs

$(DOCS)/.installed: constraints.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt \
		mkdocs-material mkdocstrings-python latex2mathml ruff typer
	touch $@

clean:
	rm -rf $(VENV) .versions demo docs build *.egg-info
