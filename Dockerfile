# bidsapp-recon as a container image. docs/tutorials/containers.md says how to build and run it.
#
#   BASE         a Debian or Ubuntu with Python 3.11 or newer (locked versions are tried with bookworm's 3.11)
#   TORCH_INDEX  where torch comes from: PyTorch's CPU builds by default (an image under 2 GB), another of
#                PyTorch's indexes for a CUDA build, empty for pip's own index
#   MODELS       recipes whose weights are fetched into the image, separated by blanks; none by default
#   VERSION, REVISION, TAG   what the labels and the outputs' dataset_description.json say
ARG BASE=debian:bookworm-slim

# Large layers (this one, and that of the models) stay where they are made: copies would take as long, and as much disk.
FROM ${BASE} AS dependencies
# No versions of Debian's packages: they are those of the base, and old ones leave the archive.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY container/requirements.txt container/install.sh /build/container/
# A pip.conf of the place that builds (a mirror, a certificate) comes as a secret: docker build --secret id=pip.conf,src=FILE
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    sh /build/container/install.sh

# Into a folder of its own, so that a change of the app leaves the large layer of its dependencies as it is.
FROM dependencies AS package
COPY pyproject.toml README.md LICENSE /build/
COPY bidsapp /build/bidsapp
RUN /opt/venv/bin/python -m pip install --no-index --no-deps --no-build-isolation --prefix /opt/package /build

FROM dependencies AS app
COPY --from=package /opt/package /opt/venv
RUN /opt/venv/bin/python -m pip check
# Nothing is written outside /tmp and the folders that are mounted; the app sets the threads itself (--n-cpus).
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DENO_DIR=/tmp/deno \
    DENO_NO_UPDATE_CHECK=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    BIDSAPP_RECON_MODELS=/models

FROM app AS models
ARG MODELS=""
RUN mkdir /models \
    && for recipe in ${MODELS}; do bidsapp-recon fetch-models --recipe "${recipe}" --models-dir /models || exit; done \
    && chmod -R a+rX /models

FROM models
ARG VERSION=0.1.0
ARG REVISION=""
ARG TAG=bidsapp-recon:${VERSION}
ENV BIDSAPP_RECON_CONTAINER=${TAG}
LABEL org.opencontainers.image.title="bidsapp-recon" \
      org.opencontainers.image.description="A BIDS App that reconstructs the images a person saw from their fMRI responses" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["bidsapp-recon"]
