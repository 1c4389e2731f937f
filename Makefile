# saelearn: `make lab` to learn, `make test` to check (GNU make; Linux and macOS).
# On Windows, or with conda, `saelearn lab` does the same: see README.md.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2

PY := .venv/bin/python
# One stamp for each state of what decides the environment, the folder included: a clone that was
# moved or copied would otherwise go on using the package of its old place.
STATE := $(shell { pwd; cat pyproject.toml constraints.txt saelearn/__init__.py; } | cksum | cut -d ' ' -f 1)
STAMP := .venv/.ready-$(STATE)

# For the GPU's kernels on a CPU: Triton's interpreter, and the NumPy that it accepts. Linux alone.
KERNELS := .venv/triton/.ready-$(shell cksum < tests/triton.txt | cut -d ' ' -f 1)

# What reads lesson 13's real model, beside the environment: the lessons run without it.
READER := .venv/real/.ready-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)

NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=120 \
	--nbval-sanitize-with=tests/nbval_sanitize.cfg
PYTEST := $(PY) -m pytest -q --durations=8

.PHONY: help lab ready test test-slow model live data lessons student doctor lint clean
.DELETE_ON_ERROR:

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

lab: $(STAMP) ## open the course in JupyterLab; your copies of the lessons live in my_course/
	@$(PY) -m saelearn.cli lab

ready: $(STAMP) ## the environment alone

test: $(STAMP) $(KERNELS) lint ## everything that must hold, in a few minutes
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not slow" $(NBVAL) tests notebooks

test-slow: $(STAMP) ## what takes long
	HYPOTHESIS_PROFILE=default $(PYTEST) -m slow tests

model: $(READER) ## fetch lesson 13's real model, 93 MB, once
	@PYTHONPATH=.venv/real $(PY) -m saelearn.cli fetch smollm2

live: model ## lesson 13 with the real model
	SAELEARN_LIVE="$$($(PY) -c 'from saelearn import real; print(real.folder())')" \
		$(PYTEST) -p no:xdist -k real_model tests/test_real.py

data: $(STAMP) ## rebuild everything in data/ from seeds
	$(PY) -m saelearn.cli data

lessons: $(STAMP) ## run lessons and store their outputs for a commit: make lessons L="04 05"
	@$(PY) -m saelearn.cli execute $(L)

student: $(STAMP) ## the lessons without solutions, in build/student/
	@rm -rf build/student
	@$(PY) -m saelearn.cli student --out build/student

$(KERNELS): $(STAMP)
	@rm -rf .venv/triton && mkdir -p .venv/triton
	@$(PY) -m pip install -q --no-deps --target .venv/triton -r tests/triton.txt 2>/dev/null || \
		echo "No Triton for this system: the tests of the GPU's kernels will be skipped."
	@touch $@

$(READER): $(STAMP)
	@rm -rf .venv/real && mkdir -p .venv/real
	@$(PY) -m pip install -q --no-deps --target .venv/real $$($(PY) -c 'import tomllib; print( \
		*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["real"])')
	@touch $@

doctor: $(STAMP) ## what this machine has, and whether its backends agree
	@$(PY) -m saelearn.cli doctor

lint: $(STAMP) ## style of code and notebooks
	$(PY) -m ruff check
	$(PY) -m ruff format --check

clean: ## remove the environment, builds and caches; never my_course/ or runs/
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find saelearn tests notebooks -name __pycache__ -prune -exec rm -rf {} +

$(STAMP):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "saelearn needs Python 3.11 or newer; here is: $$($(or $(PYTHON),python3) --version 2>&1)"; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Setting up .venv (once; about 2 GB on disk, one to two minutes on a fast connection) ..."
	@"$(PYTHON)" -m venv .venv || { \
		echo "Python's venv module is missing: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@$(PY) -m pip install -qq --disable-pip-version-check \
		-c constraints.txt -e '.[lab,test,browser]'
	@rm -f .venv/.ready-*
	@touch $@
	@echo "Ready: .venv holds the versions of constraints.txt."
