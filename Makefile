# PYTHON, MODEL and RUN can be set: make demo MODEL=sesame/csm-1b
PYTHON ?= python3
RUN ?= demo
MODEL ?=
BIN := .venv/bin
ifdef PIP_FIND_LINKS  # uv does not read pip's settings
export UV_FIND_LINKS = $(PIP_FIND_LINKS)
endif
# containers often set it: then every process compiles torch and transformers anew, 25 s instead of 10
unexport PYTHONDONTWRITEBYTECODE
UV := $(BIN)/uv pip install -q --python $(BIN)/python
UV_LATEST := .venv-latest/bin/uv pip install -q --python .venv-latest/bin/python
TRACKERS := trackio wandb tensorboard  # a test logs to the real ones where they are installed

.PHONY: demo gallery lint check test test-slow test-full test-latest test-load

demo: .venv/installed
	$(BIN)/tts-kit demo --run $(RUN) $(if $(MODEL),--base $(MODEL))

gallery: .venv/installed-dev
	$(BIN)/python -m nbconvert --execute --to notebook --output-dir runs/gallery notebooks/0*.ipynb
	$(BIN)/python -m nbconvert --to html --CoalesceStreamsPreprocessor.enabled=True runs/gallery/0*.ipynb

# about a minute of CPU time: style, the repository's rules, and the heart of model, loss, generation and statistics
check: lint
	$(BIN)/python -m pytest $(addprefix tests/test_,house.py config_and_run.py text.py model_loss.py model_lora.py \
		training_dataset.py tokens_prompt.py generation_engine.py comparison_verdict.py evaluation_scoring.py) -m "not slow"

test: .venv/installed-dev
	$(BIN)/python -m pytest tests -m "not slow" -n 3 --dist loadfile

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest tests -m slow -n 3 --dist loadfile

test-load: .venv/installed-dev
	$(BIN)/python -m pytest tests/load --timeout 1800 -s

test-full: .venv/installed-dev
	$(BIN)/python -m pytest tests/full --timeout 3600 -s

test-latest:
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install -q uv
	grep -v -E '^(transformers|peft|accelerate|trl)=' constraints.txt > .venv-latest/constraints.txt
	$(UV_LATEST) --upgrade transformers peft accelerate trl $(TRACKERS) -e ".[dev]" -c .venv-latest/constraints.txt
	$(UV_LATEST) --no-deps -r requirements-no-deps.txt
	.venv-latest/bin/python -m pytest tests -n 3 --dist loadfile --ignore tests/build  # needs the parts of Mimi in 5.17

lint: .venv/installed-dev
	$(BIN)/ruff check .

.venv/installed: pyproject.toml requirements.txt constraints.txt requirements-no-deps.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(UV) -e ".[all]" -c constraints.txt
	$(UV) --no-deps -r requirements-no-deps.txt
	touch $@

.venv/installed-dev: .venv/installed
	$(UV) -e ".[dev]" -c constraints.txt
	touch $@
