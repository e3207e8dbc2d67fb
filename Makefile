# Every target makes the virtual environment .venv at the root when it is missing.
# ONNX Runtime for the GPU is taken where nvidia-smi answers, else for the CPU.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
INSTALL := PYTHON=$(PYTHON) docker/install.sh --editable $(VENV)
# A test process for each core, each with servers of its own; what one of them has left, an idle one takes.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal
DATA    ?=
CONFIG  ?=
SEEDS   ?= 1..10

.PHONY: install demo test servers test-slow lint bench bench-gpu conformance fuzz train serve sbom faults hosts soak clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(INSTALL) $(RUNTIME)
	@touch $@

# All that .installed has, and more: one after the other would be the same work twice.
$(VENV)/.developer: pyproject.toml
	$(INSTALL) $(RUNTIME),train,dev
	@touch $(VENV)/.installed $@

demo: install  ## compose the demonstration slide, analyse it, print the differential beside the truth
	$(BIN)/marrow-node demo

test:  ## lint, types and tests, with a real PACS and a real FHIR server
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.developer servers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Types are checked beside the tests, and what is wrong with them is said after these.
	@$(BIN)/mypy >$(VENV)/types.log 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PARALLEL); tests=$$?; \
	wait $$types || { cat $(VENV)/types.log; exit 1; }; exit $$tests

servers:
	./tests/install_servers

test-slow: $(VENV)/.developer  ## tests that train or measure for minutes
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.developer  ## time reading, whole analyses and growth beside other readers and the limit
	$(BIN)/python -m tests.bench --out bench

bench-gpu: $(VENV)/.developer  ## tiles and slides a second on the GPU, how busy it is, agreement with the CPU
	$(BIN)/python -m tests.bench.gpu --out bench

conformance: $(VENV)/.developer  ## write anew: tables of the standard, conformance statement, what each validator catches
	$(BIN)/python -m conformance
	$(BIN)/python -m tests.kit.caught

fuzz: $(VENV)/.developer  ## 10 000 mutated inputs, then ten minutes guided by coverage where atheris is to be had
	$(INSTALL) $(RUNTIME),train,dev,fuzz
	$(BIN)/python -m tests.fuzz --runs 10000 --seconds 600

train: $(VENV)/.developer  ## train demo-smear from make train DATA=folder
	$(BIN)/python -m models.training $(DATA)

serve: install  ## run the service with make serve CONFIG=node.toml: web, pages and workers
	$(BIN)/marrow-node $(if $(CONFIG),--config $(CONFIG)) serve

sbom: $(VENV)/.developer  ## list what an image holds: CycloneDX, from a fresh installation beside
	$(INSTALL) $(RUNTIME),train,dev,sbom
	PYTHON=$(PYTHON) docker/install.sh build/image $(RUNTIME),postgres
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.cdx.json build/image

faults: $(VENV)/.developer servers  ## run fault schedules with SEEDS=1..60, and add them to tests/faults/table.jsonl
	$(BIN)/python -m tests.faults --seeds $(SEEDS)

hosts: $(VENV)/.developer servers  ## two hosts with separate storage: how much faster, and what one that dies leaves
	$(BIN)/python -m tests.hosts

soak: $(VENV)/.developer servers  ## 24 hours of operation in twenty minutes, drawn
	$(BIN)/python -m tests.soak

clean:
	rm -rf $(VENV) demo work build *.egg-info .mypy_cache .ruff_cache .pytest_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
