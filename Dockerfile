# CPU image. The set-up is the Makefile's, so the image holds what a checkout holds.
#
#   docker build -t refine-server .
#   docker run -p 8000:8000 -v refine-cache:/var/cache/refine-server refine-server
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

# The server runs as this user. Of the server's folders it may write only the cache,
# where converted and downloaded models are kept.
RUN useradd --create-home --uid 10001 refine \
    && install --directory --owner=refine --group=refine /var/cache/refine-server

# PyTorch's own index has torch 2.13.0+cpu, which pip ranks above PyPI's 2.13.0 (CUDA, far larger)
# and which the pin torch==2.13.0 in constraints.txt accepts.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1

WORKDIR /app
COPY . .
RUN make setup

ENV PATH=/app/.venv/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=passive \
    REFINE_CACHE_DIR=/var/cache/refine-server \
    HF_HOME=/var/cache/refine-server/huggingface

USER refine
VOLUME /var/cache/refine-server
EXPOSE 8000

# The first start converts the bundled model and adapts once before it is ready.
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=8)"]

CMD ["refine-server", "serve", "--host", "0.0.0.0", "--port", "8000"]
