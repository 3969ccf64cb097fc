# syntax=docker/dockerfile:1
# One image for every node of a cluster, and for one machine (docs/deploy.md). No secrets: they come with the
# environment in which it is started.
#   docker build -t weft:0.1.0 .                                                                with CUDA
#   docker build -t weft:0.1.0-cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .    without
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
# Where else pip looks for torch. PyPI's own build for Linux brings the CUDA libraries along; of two builds of one
# version pip takes the one from PyTorch's index, whose version has the longer name.
ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY graph graph
COPY models models
COPY deployments deployments
RUN python -m venv /opt/weft \
    && /opt/weft/bin/pip install --no-cache-dir --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" .

FROM python:${PYTHON_VERSION}-slim
# wget: older KubeRay operators ask it whether a node is well.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 weft \
    && install --directory --owner weft /var/lib/weft
COPY --from=build /opt/weft /opt/weft
ENV PATH=/opt/weft/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WEFT_DATA_DIR=/var/lib/weft
USER 1000
WORKDIR /home/weft
# It listens on loopback, so one machine needs `docker run --network host`. Kubernetes gives its own command.
CMD ["weft", "run"]
