# `make demo` and `make test` each create .venv and install what they need when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo train examples test test-all test-oldest lint format clean

demo: .venv/eval.installed
	$(BIN)/oodclip demo --output demo-output

train: .venv/train.installed
	$(BIN)/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		training/train.py --recipe krnft-pocket --output-dir krnft-adapter --overwrite

# The model cards in model_cards/examples, from real runs on the embedded images.
examples: .venv/dev.installed
	rm -rf card-examples
	$(BIN)/python -m hf_oodclip.model_cards.make_examples card-examples --copy-to model_cards/examples

# One process a core; a file's tests stay together, for they share what they load.
test: lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-all: lint
	$(BIN)/python -m pytest

# The oldest transformers and PEFT that pyproject.toml allows; the newest are in constraints.txt.
test-oldest: .venv-oldest/dev.installed
	.venv-oldest/bin/python -m pytest -m "not slow" tests/adapters tests/training tests/test_modeling.py \
		tests/test_pipeline.py tests/test_registration.py tests/test_loading.py tests/test_text_bank.py

.venv-oldest/dev.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oldest
	sed 's/^transformers==.*/transformers==5.20.0/; s/^peft==.*/peft==0.21.0/' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable ".[dev]"
	@touch $@

lint: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/%.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

clean:
	rm -rf .venv .venv-oldest demo-output krnft-adapter card-examples build dist *.egg-info
