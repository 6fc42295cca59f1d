# The Python that makes the environment: `make test PYTHON=/path/to/python3.12` picks another.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BOOK := _build/html/index.html

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test lint book check-book pdf lab gpu clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("wsr needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book,test]'
	touch $@

test: $(INSTALLED)  ## run every test and doctest, except those of the built book
	$(BIN)/python -m pytest --ignore=tests/book

lint: $(INSTALLED)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Sphinx does not read an unchanged page again, so after a failure its record of pages is dropped:
# otherwise the next build would not repeat the warning, and pass. Executed notebooks stay cached.
# One thread, because the chapters' tensors are small, and threads wait for each other on a busy machine.
book: $(INSTALLED)  ## execute the chapters and render the book; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/jupyter-book build . -W --keep-going || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is at $(CURDIR)/$(BOOK)"

check-book: $(INSTALLED)  ## test the rendered book: links, alt texts, downloads, a real browser
	$(BIN)/python -m pytest tests/book

pdf: $(INSTALLED)  ## print the rendered book to _build/pdf/wsr.pdf (needs a browser, as check-book)
	$(BIN)/python book/_ext/print_book.py _build/html _build/pdf/wsr.pdf

# The setting, inside this environment only, has a click on a chapter open it as a notebook.
lab: $(INSTALLED)  ## open JupyterLab with the chapters as notebooks
	$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json set-default-viewer markdown myst
	$(BIN)/jupyter lab book

# The environment above holds whatever build of torch pip found; a GPU machine has its own. Left out
# are the tests that need cvxpy or pooch, which such a machine may lack, and those of the experiments.
gpu: PYTHON := $(shell command -v python3)
gpu: export PYTHONPATH := $(CURDIR)
gpu:  ## test on a GPU and record accuracy and timings there, with the machine's own python3 (or PYTHON=...)
	$(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch sees no GPU")'
	$(PYTHON) -m pytest --device cuda --hypothesis-profile=gpu wsr $(filter-out $(CPU_TESTS),$(wildcard tests/test_*.py))
	cd book && $(PYTHON) -m experiments.accuracy --device cuda
	cd book && $(PYTHON) -m experiments.timings --device cuda

CPU_TESTS := $(addsuffix .py,$(addprefix tests/test_,cvxpy readme records data photos accuracy timings rounds \
	frequency learning linear_regression torus shuffled cifar retraining over_time))

clean:  ## remove the built book and the caches (the environment stays)
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis
