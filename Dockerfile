# nemo_gdpo as an image. docs/image.md says how it is built and run; on NVIDIA GPUs:
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag nemo-gdpo .
#
# and on a machine without one:
#
#   docker build --build-arg BASE_IMAGE=python:3.11.13-slim-bookworm --build-arg TRAINING=training \
#     --build-arg GENERATION=generation --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
#     --tag nemo-gdpo:cpu .

# megatron-core 0.19 is itself tested in this one: Python 3.12, torch 2.13.0a0, CUDA 13.3.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3
# Environments of tools/environment.py; GENERATION=none leaves vLLM out.
ARG TRAINING=training-ngc
ARG GENERATION=generation-gpu

# --- what every stage needs of the system; no compiler among it --------------------------------
FROM ${BASE_IMAGE} AS base
ARG DEBIAN_FRONTEND=noninteractive
# tini is process 1: it passes signals on from the first moment and reaps orphans. libnuma1 is linked
# by vLLM's CPU kernels. python3-venv only where the base has no whole Python (Ubuntu and Debian keep
# ensurepip apart). Without versions: they are those of the base's distribution, whose index keeps
# only the newest, so that a pin would end the build at the next security update.
# hadolint ignore=DL3008
RUN set -- libnuma1 tini \
  && { python3 -c 'import ensurepip, venv' 2>/dev/null || set -- "$@" python3-venv; } \
  && apt-get update \
  && apt-get install --yes --no-install-recommends "$@" \
  && apt-get clean \
  && rm -rf /var/lib/apt/lists/*

# --- what the environments are made from, and nothing that changes more often -------------------
FROM base AS locks
# Optional build secrets, which no layer keeps: /run/secrets/pip, a pip.conf with an index of your own,
# and /run/secrets/ca, certificates that it may name.
ENV NEMO_GDPO_CACHE=/opt/environments PIP_CONFIG_FILE=/run/secrets/pip PIP_NO_CACHE_DIR=1
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/nemo_gdpo
COPY requirements/*.lock requirements/
COPY tools/environment.py tools/
COPY tools/environments/ tools/environments/

FROM locks AS generation
ARG GENERATION
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
  mkdir -p .venv /opt/environments \
  && if [ "$GENERATION" != none ]; then python3 tools/environment.py "$GENERATION" >/dev/null; fi \
  && rm -f /opt/environments/environments/*.lock

FROM locks AS training
ARG TRAINING
COPY pyproject.toml ./
COPY tools/image/base_packages.py tools/image/
# The base's own packages (torch, Transformer Engine, Apex) are written down before and compared after,
# as the base's Python and as the environment on top of it sees them.
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
  python3 tools/image/base_packages.py record base-packages.json \
  && python3 tools/environment.py "$TRAINING" >/dev/null \
  && python3 tools/image/base_packages.py compare base-packages.json \
  && ".venv/$TRAINING/bin/python" tools/image/base_packages.py kept base-packages.json \
  && rm -f /opt/environments/environments/*.lock

# --- the image ----------------------------------------------------------------------------------
FROM base
ARG TRAINING
# Not a uid that a base has (Ubuntu's own is 1000). Any other uid works as well: the home and
# /workspace are everybody's, like /tmp.
RUN useradd --uid 10001 --user-group --no-log-init --create-home nemo_gdpo \
  && chmod 1777 /home/nemo_gdpo \
  && install --directory --mode=1777 /workspace
WORKDIR /opt/nemo_gdpo
COPY --from=generation /opt/environments/ /opt/environments/
COPY --from=generation /opt/nemo_gdpo/.venv/ .venv/
COPY --from=training /opt/environments/ /opt/environments/
COPY --from=training /opt/nemo_gdpo/.venv/ .venv/
COPY --from=training /opt/nemo_gdpo/base-packages.json ./
COPY LICENSE pyproject.toml ./
COPY tools/ tools/
COPY conf/ conf/
COPY examples/ examples/
COPY nemo_gdpo/ nemo_gdpo/
# Whoever runs the container cannot write here, so that Python would compile every file every time.
RUN python3 tools/image/base_packages.py compare base-packages.json \
  && ".venv/$TRAINING/bin/python" -m compileall -q nemo_gdpo examples \
  && ln -s /opt/nemo_gdpo/tools/image/entrypoint.sh /usr/local/bin/nemo-gdpo-entrypoint

# A uid without a name has no login to look up, and torch's compiler names its cache after that.
ENV PATH=/opt/nemo_gdpo/.venv/${TRAINING}/bin:${PATH} \
  HOME=/home/nemo_gdpo \
  USER=nemo_gdpo \
  LOGNAME=nemo_gdpo
# Late, because a new value makes anew what comes after it.
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="nemo_gdpo" \
  org.opencontainers.image.description="GFlowNet-DPO, DPO with an offset and active-query DPO on Megatron" \
  org.opencontainers.image.source="${SOURCE}" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.base.name="${BASE_IMAGE}"
USER 10001:10001
WORKDIR /workspace
STOPSIGNAL SIGTERM
# Importing torch takes seconds of a core, so it asks seldom.
HEALTHCHECK --interval=10m --timeout=2m --start-period=2m --retries=3 CMD ["nemo-gdpo", "doctor"]
ENTRYPOINT ["tini", "-s", "--", "nemo-gdpo-entrypoint"]
CMD ["--help"]
