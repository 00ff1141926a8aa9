# Every target sets up .venv first if it is absent. PYTHON may name another interpreter (3.11 or newer).
PYTHON  ?= python3
PROFILE ?= demo
CORPUS  ?=
ROOT    ?=
FOLDS   ?= 1
SEEDS   ?= 0
SET     ?=
BIN     := .venv/bin
RUN      = $(BIN)/python -m dpmkit reproduce --profile $(PROFILE) --folds $(FOLDS) --seeds $(SEEDS) \
           $(if $(CORPUS),--corpus $(CORPUS)) $(if $(ROOT),--root "$(ROOT)") $(foreach pair,$(SET),--set '$(pair)')

# A virtual environment works in the folder it was made for alone: its scripts and the installed dpmkit name that
# folder, so that a copied or moved checkout, or one whose interpreter is gone, is set up anew.
MOVED   := $(shell [ ! -e .venv/.complete ] || { [ -x $(BIN)/python ] && \
           grep '^command = ' .venv/pyvenv.cfg | grep -qF -- " $$(pwd -P)/.venv"; } || echo --clear)

.PHONY: help setup quick table1 reproduce voices notebooks test lab report publish clean moved
help:
	@echo "make quick                     Table 1 at reduced size: notebooks 01 to 03 of profile quick, five minutes"
	@echo "make table1                    Table 1: notebooks 01 to 03 on the demo corpus"
	@echo "make reproduce                 the five notebooks on the demo corpus, results/own/, beside the reference"
	@echo "make voices ROOT=path/to/CREMA-D   the same on real voices: CREMA-D, codes of Moonshine's encoder"
	@echo "make test                      every test, the smoke notebooks included"
	@echo "make lab                       JupyterLab on notebooks/"
	@echo "make notebooks PROFILE=demo CORPUS=emodb ROOT=path/to/emodb [FOLDS=all] [SEEDS=0,1,2] \\"
	@echo "     [SET=\"codes.tokenizer=mimi memory.lr=1e-3\"]   any setting; python -m dpmkit settings lists them"
	@echo "make report                    the page of your own results, results/own/README.md, from their records"
	@echo "make publish                   your own results become the committed reference; README's tables with them"
	@echo "make clean                     remove runs/ (codes, checkpoints, predictions)"

# pip's exit ends the recipe before the stamp is written, so that a broken set-up is done again.
.venv/.complete: requirements.lock pyproject.toml $(MOVED:--clear=moved)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dpmkit needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" >&2; exit 2; }
	@echo "setting up .venv (some minutes, once)"
	$(PYTHON) -m venv $(MOVED) .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: .venv/.complete

quick: PROFILE = quick
quick table1: .venv/.complete
	$(RUN) --notebooks 01,02,03

voices: PROFILE = voices
reproduce notebooks voices: .venv/.complete
	$(RUN)

test: .venv/.complete
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lab: .venv/.complete
	env -u JUPYTER_PATH $(BIN)/python -m jupyter lab --notebook-dir=. notebooks/01_data_prep.ipynb

report: .venv/.complete
	$(BIN)/python -m dpmkit report

publish: .venv/.complete
	$(BIN)/python -m dpmkit publish

clean:
	rm -rf runs
