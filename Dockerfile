# Two images: `service` (API and worker; the last stage, so the default) and `redis` (the store, with a folder its user owns).
# CPU or GPU is decided by where torch comes from: PyPI's wheel for Linux carries CUDA and runs on both;
# TORCH_INDEX=<the PyTorch CPU wheel index> makes a much smaller image, for CPUs only.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG VALKEY_IMAGE=valkey/valkey:9

FROM ${VALKEY_IMAGE} AS redis
# A folder of our own, not /data: what a build changes below a base image's VOLUME is lost, its owner too.
RUN install -d -o 999 -g 999 /var/lib/ddpm
WORKDIR /var/lib/ddpm
USER 999:999
# `ping` exits 0 on NOAUTH and while the append-only file is still being read.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD valkey-cli ping | grep -q PONG

FROM ${PYTHON_IMAGE} AS build
# pip reads these from the environment; Compose hands on the host's, so that a mirror there is a mirror here.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# For worker/backends/cpu/kernels.c, below.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt ./
RUN pip --python /opt/venv install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
 && cd /opt/venv/lib/python3*/site-packages/torch && rm -rf include test \
 && find bin -type f ! -name torch_shm_manager -delete
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['s3'], *p['optional-dependencies']['otel'], sep='\n')" > requirements.txt \
 && pip --python /opt/venv install -c constraints.txt -r requirements.txt
COPY README.md LICENSE hatch_build.py ./
COPY app app
COPY cli cli
COPY models models
COPY worker worker
RUN pip --python /opt/venv install --no-deps --target /opt/ddpm .

FROM ${PYTHON_IMAGE} AS service
LABEL org.opencontainers.image.title="ddpm-service" \
      org.opencontainers.image.description="Samples from trained denoising diffusion models over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 ddpm \
 && useradd --uid 10001 --gid ddpm --home-dir /tmp --no-create-home --shell /usr/sbin/nologin ddpm \
 && install -d -o ddpm -g ddpm /models /cache
COPY --from=build /opt/venv /opt/venv
# Triton comes with torch for GPUs, and wants a C compiler when it first meets one.
RUN if [ -d /opt/venv/lib/python3*/site-packages/triton ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/ddpm /opt/ddpm
COPY docker/healthy.py /opt/ddpm/
# HOME: caches of torch and CUDA go where a read-only container can write.
ENV PATH=/opt/ddpm/bin:/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/ddpm \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    DDPM_HOST=0.0.0.0 \
    DDPM_HEARTBEAT_FILE=/tmp/heartbeat \
    DDPM_MODELS_DIR=/models
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-m", "healthy", "api"]
ENTRYPOINT ["ddpm"]
CMD ["api"]
