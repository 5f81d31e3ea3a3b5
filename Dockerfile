# syntax=docker/dockerfile:1
# Two images of the server: --target cpu and --target cuda (x86-64). docs/DEPLOYMENT.md tells how they are built and run.

# Release builds pin it by digest: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY deploy/locks/build.txt /locks/build.txt
RUN pip install --no-cache-dir --require-hashes -r /locks/build.txt
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS packages
COPY deploy/locks /locks
RUN python -m venv /opt/twinshot \
    && /opt/twinshot/bin/pip install --no-cache-dir --require-hashes -r /locks/base.txt

FROM packages AS packages-cpu
# The address of PyTorch's index of CPU wheels, which pytorch.org names. Without it torch comes with CUDA, gigabytes of it.
ARG TORCH_INDEX=""
RUN if [ -n "${TORCH_INDEX}" ]; then \
      /opt/twinshot/bin/pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" \
        -r /locks/cpu.txt; \
    else \
      /opt/twinshot/bin/pip install --no-cache-dir --require-hashes -r /locks/gpu.txt; \
    fi
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/twinshot/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM packages AS packages-cuda
RUN /opt/twinshot/bin/pip install --no-cache-dir --require-hashes -r /locks/gpu.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/twinshot/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="twinshot" \
      org.opencontainers.image.description="Low-latency server for one-step text-to-image models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# Everything that is written lies in /cache (models, compiled kernels) and /tmp; the root may be read-only.
ENV PATH=/opt/twinshot/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    CUDA_CACHE_PATH=/cache/cuda \
    TWINSHOT_HOST=0.0.0.0
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin twinshot \
    && install --directory --owner=twinshot --group=twinshot /cache
VOLUME /cache
WORKDIR /cache
EXPOSE 8000
# For Docker alone: Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10m \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('TWINSHOT_PORT', '8000')}/readyz\", timeout=2)"]
ENTRYPOINT ["twinshot"]
CMD ["serve"]

FROM runtime AS cpu
COPY --from=packages-cpu /opt/twinshot /opt/twinshot
USER 10001:10001

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles its launchers when they are first needed; Python's headers are part of the image.
# Debian keeps no older versions, so that none can be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-cuda /opt/twinshot /opt/twinshot
USER 10001:10001
