# Every target makes the virtual environment .venv at the root when it is missing.
# ONNX Runtime for the GPU is taken where nvidia-smi answers, else for the CPU.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DATA    ?=
CONFIG  ?=

.PHONY: install demo test test-slow lint bench bench-gpu conformance fuzz train serve faults clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[$(RUNTIME)]"
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) --editable ".[$(RUNTIME),train,dev]"
	@touch $@

demo: install  ## compose the demonstration slide, analyse it, print the differential beside the truth
	$(BIN)/marrow-node demo

test: $(VENV)/.developer lint  ## lint, types and tests, with a real PACS and a real FHIR server
	./tests/install_servers
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.developer  ## tests that train or measure for minutes
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.developer  ## time reading, whole analyses and growth beside other readers and the limit
	$(BIN)/python -m tests.bench --out bench

bench-gpu: $(VENV)/.developer  ## tiles a second on the GPU, how busy it is, agreement with the CPU
	$(BIN)/python -m tests.bench.gpu

conformance: $(VENV)/.developer  ## write anew: tables of the standard, conformance statement, what each validator catches
	$(BIN)/python -m conformance
	$(BIN)/python -m tests.kit.caught

fuzz: $(VENV)/.developer  ## 10 000 mutated inputs, then ten minutes guided by coverage where atheris is to be had
	$(PIP) --editable ".[$(RUNTIME),train,dev,fuzz]"
	$(BIN)/python -m tests.fuzz --runs 10000 --seconds 600

train: $(VENV)/.developer  ## train demo-smear from make train DATA=folder
	$(BIN)/python -m models.training $(DATA)

serve: install  ## run the service with make serve CONFIG=node.toml: web, pages and workers
	$(BIN)/marrow-node $(if $(CONFIG),--config $(CONFIG)) serve

faults:  ## nothing yet: fault injection beyond the test suite comes with the service

clean:
	rm -rf $(VENV) demo work build *.egg-info .mypy_cache .ruff_cache .pytest_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
