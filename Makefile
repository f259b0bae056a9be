# Everything that one does with a checkout. `make` alone lists the targets; each makes what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A folder of real instrument files for the demo; empty for simulated instruments.
DATA   ?=

.DEFAULT_GOAL := help
.PHONY: help demo up test check train protos docs bench bench-peers chaos constraints mosquitto postgresql chromium clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Fieldpost needs Python 3.11 or newer, but $(PYTHON) is {sys.version.split()[0]}: call make PYTHON=python3.11 (or newer)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Fieldpost and what it needs into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[edge,quick-look,server,ray-train,tracing,flows,dev]'
	@touch $@

demo: $(READY) ## a day of three stations in a minute; DATA=<folder> for your own files
	@$(BIN)/python -m demo $(if $(DATA),--data "$(DATA)")

up: $(READY) ## the same, and leave it running, with every flow on Prefect's page
	@$(BIN)/python -m demo --stay $(if $(DATA),--data "$(DATA)")

test: $(READY) mosquitto postgresql chromium ## all tests
	@$(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadgroup $(PYTEST_ARGS)

check: $(READY) ## lint, types, import direction, generated files up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs.generate --check

protos: $(READY) ## regenerate fieldpost/v1 from protos/
	@$(BIN)/python -m docs.generate protos

docs: $(READY) ## regenerate the parts of README and docs/ that come from the code
	@$(BIN)/python -m docs.generate docs

train: $(READY) ## train the learned boundary-layer retrieval that ships here (about an hour on 2 cores)
	@TORCHRUN="$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 2" OUT=build/boundary-layer \
		sh server/analyses/boundary_layer/training/train.sh

bench: $(READY) mosquitto postgresql bench-peers ## all benchmarks
	@for name in delivery edge inference network growth decode wavelet archive boundary_layer boundary_layer_training; do $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-peers: ## install mosec, LitServe, Ray Serve, Triton and BentoML beside us, to be measured (830 MB)
	@sh deploy/bench-peers/install.sh $(PYTHON)

chaos: $(READY) mosquitto postgresql ## kill -9 under load, every step of station and server killed, a long outage, odd inputs
	@PYTHONPATH=tests $(BIN)/python -m chaos.campaign --seconds 120
	@PYTHONPATH=tests $(BIN)/python -m chaos.outage --count 100000
	@PYTHONPATH=tests $(BIN)/python -m faults.every_step
	@PYTHONPATH=tests $(BIN)/python -m faults.server_steps
	@PYTHONPATH=tests $(BIN)/python -m chaos.fuzz --count 1000000
	@PYTHONPATH=tests $(BIN)/python -m chaos.api_fuzz --count 100000

mosquitto:
	@sh deploy/mosquitto/install.sh

postgresql:
	@sh deploy/postgresql/install.sh

chromium:
	@sh deploy/chromium/install.sh

constraints: ## write constraints.txt anew from the newest versions that pyproject.toml allows
	@sh deploy/constraints.sh $(PYTHON)

clean: ## remove what make made here
	@rm -rf $(VENV) demo-output benchmark-output build dist
