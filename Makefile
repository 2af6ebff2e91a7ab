# Everything runs in .venv, which each target makes when it is not there. Windows: the plain commands are in docs/install.md.
#
#   PYTHON=python3.12   the Python that makes .venv (3.11 or newer)
#   TORCH=cpu           PyTorch's CPU-only build: on Linux, without gigabytes of CUDA; once .venv exists, `make clean-all` first
#   ARGS="--minutes 2"  more arguments for `course demo`
#   WORKERS=8           so many processes run the tests, each on one core

PYTHON ?= python3
TORCH  ?=
ARGS   ?=
WORKERS ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

ifeq ($(TORCH),cpu)
  # 2.15.0+cpu from there counts as newer than 2.15.0, so pip takes it
  PIP += --extra-index-url https://download.pytorch.org/whl/cpu
else ifneq ($(TORCH),)
  $(error TORCH must be cpu or nothing, got "$(TORCH)")
endif

# a notebook is a test: no cell may raise, and a cell tagged nbval-check-output must print what it printed when it was built.
# The kernel is the Python that runs pytest; loadscope keeps the cells of a notebook together, in one kernel.
NBVAL  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope -p no:python --nbval-lax --nbval-current-env \
          --nbval-cell-timeout 180

.DEFAULT_GOAL := help
.PHONY: help demo lab test test-all nbgrader class soak site test-site release lint constraints clean clean-all
.NOTPARALLEL:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.core  ## train the text-to-image model beside a pixel-space one; the page is runs/demo/report.html
	$(BIN)/course demo $(ARGS)

lab: $(VENV)/.core  ## copy the chapters to my-notebooks, once, and open JupyterLab where you left, at first on the first
	$(BIN)/course start my-notebooks
	$(BIN)/course lab my-notebooks

test: $(VENV)/.dev  ## unit tests, then every notebook, solved and unsolved
test-all: $(VENV)/.dev  ## the same, the slow tests, and twenty kills as in `make soak`
test: FAST := -m "not slow"
test-all: export COURSE_SOAK := 20
test-all: nbgrader
test test-all:
	COURSE_PROFILE=quick OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --timeout 1200 $(FAST)
	COURSE_PROFILE=quick COURSE_GRADING=1 $(NBVAL) solutions
	COURSE_PROFILE=quick $(NBVAL) notebooks

nbgrader: build/nbgrader/bin/nbgrader  ## nbgrader, in an environment of its own, for the slow tests

# apart, since it holds back packages that the course needs newer
build/nbgrader/bin/nbgrader: constraints-nbgrader.txt
	$(PYTHON) -m venv build/nbgrader
	build/nbgrader/bin/python -m pip --disable-pip-version-check install -c constraints-nbgrader.txt nbgrader

class: $(VENV)/.dev nbgrader  ## grade forty simulated students, and every wrong and right answer, through sandbox and nbgrader: hours
	COURSE_CLASS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/classroom/test_grade.py \
	  tests/classroom/test_bridge.py tests/classroom/test_nbgrader.py

soak: $(VENV)/.dev  ## kill a run twenty times, and see that it ends with the same bits
	COURSE_SOAK=20 $(BIN)/python -m pytest -q tests/training/test_kill.py

site: $(VENV)/.site  ## chapters, tables, library and documents as web pages: build/site/html/index.html
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py

test-site: site  ## the site in headless Chromium: links, search, phone width, contrast; CHROMIUM=path where it is not on the PATH
	COURSE_SITE=build/site/html $(BIN)/python -m pytest -q tests/site

release: $(VENV)/.dev  ## VERSION=0.2.0: test, write the version and the date, build dist/, commit, tag
	@test -n "$(VERSION)" || { echo "say which: make release VERSION=0.2.0"; exit 1; }
	$(BIN)/python .ci/release.py $(VERSION)

lint: $(VENV)/.dev  ## ruff, notebooks included
	$(BIN)/ruff check .

constraints: | $(BIN)/python  ## resolve constraints.txt anew, in an environment of its own
	rm -rf build/fresh && $(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip --disable-pip-version-check install -e ".[dev,bench,docs,site]"
	{ grep '^#' constraints.txt; build/fresh/bin/python -m pip freeze --exclude-editable | sed 's/+[^ ]*//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -rf build/fresh

clean:  ## remove build outputs and caches; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -path ./runs -prune -o \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

clean-all: clean  ## remove .venv too; runs/ stays
	rm -rf $(VENV)

# ---- installing: done when a stamp is newer than the two files that say what to install

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: say for example  make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make environments; on Debian and Ubuntu:  sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $(VENV)/.core $@

$(VENV)/.site: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev,site]"
	@touch $(VENV)/.core $(VENV)/.dev $@
