# Training on CUDA GPUs. Build from the repository's root: docker build -f docker/trainers.Dockerfile -t corpusmill-train .
#   docker run --init --gpus all --shm-size=8g -v "$PWD:/home/mill/work" -w /home/mill/work corpusmill-train train RECIPE …
ARG TORCH_IMAGE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel
FROM ${TORCH_IMAGE}
# KubeRay's probes call wget
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home mill
WORKDIR /opt/corpusmill
COPY pyproject.toml constraints.txt README.md LICENSE corpusmill.py corpusmill_demo.py ./
COPY pipeline pipeline
COPY trainers trainers
COPY cluster cluster
COPY recipes recipes
# the image's own torch stays: it is built for its CUDA
RUN grep -v '^torch==' constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt --editable '.[train,s3,cluster]'
ENV NUMBA_CACHE_DIR=/home/mill/.cache/numba
USER mill
WORKDIR /home/mill
ENTRYPOINT ["corpusmill"]
