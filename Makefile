# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# an installed copy of the package is stale once one of these is newer
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint format bench tables docs resources ledger report gpu test-matrix soak clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch first and by itself: the package is then built with the headers of the torch it will run beside
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet -e '.[triton,train,plot,export,track,trainers,test,bench,lint,docs]'
	@touch $@

demo: $(VENV)/.installed  ## students that see few handwritten digits, by three methods and five seeds, compared (minutes)
	$(BIN)/python -m semckd_kernels.cli demo

# file by file, whose fixtures are made once; files in the order of conftest.py, the longest first
PYTEST = $(BIN)/python -m pytest python_tests --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed lint  ## lint and the tests, in five minutes on two Zen 4 cores
	$(PYTEST)

test-slow: $(VENV)/.installed  ## those that take long, and say more of what the others cover; CI runs both
	$(PYTEST) -m slow

test-all: test test-slow  ## both

lint: $(VENV)/.installed  ## ruff, mypy, clang-format: reports, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(VENV)/.installed  ## reformat all sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

bench: $(VENV)/.installed  ## measure kernels, loss, criterion and step against torch (FULL=1 for every shape and type)
	$(BIN)/python -m pytest bench $(if $(FULL),--full)

tables: $(VENV)/.installed  ## make the site's performance pages and the README's picture from the stored rows
	$(BIN)/python -m bench.pages

docs: $(VENV)/.installed  ## build the documentation site into build/site
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site

resources: $(VENV)/.installed  ## registers, spills and vector accesses of the compiled GPU kernels
	$(BIN)/python -m python_tests.resources

ledger: $(VENV)/.installed  ## what a step launches on a GPU, counted without one, and predicted times
	$(BIN)/python -m python_tests.stand_in_cuda.ledger

report: $(VENV)/.installed  ## versions, how it was built, which backends serve here
	$(BIN)/python -m semckd_kernels

gpu:  ## on a machine with a CUDA GPU: STEPS=measure, then STEPS=check, each under 6 minutes; no network needed
	$(PYTHON) python_tests/gpu.py $(STEPS)

test-matrix: $(VENV)/.installed  ## one wheel under the oldest and the newest torch, each in an environment of its own
	$(BIN)/python python_tests/helpers/matrix.py

soak: $(VENV)/.installed  ## kill training runs 50 times at random moments and damage their files (SOAK=200 for more)
	SEMCKD_SOAK=$(or $(SOAK),50) SEMCKD_DAMAGE=1 $(BIN)/python -m pytest -rP -m "" \
	  python_tests/training/test_soak.py python_tests/training/test_run_damage.py

clean:  ## remove what was built; the virtual environment stays
	rm -rf build dist runs semckd_kernels/lib semckd_kernels/_build_info.py *.egg-info $(VENV)/.installed
