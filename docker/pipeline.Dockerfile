# The corpus side: no torch. Build from the repository's root: docker build -f docker/pipeline.Dockerfile -t corpusmill .
#   docker run --init --shm-size=1g -v "$PWD:/home/mill/work" -w /home/mill/work corpusmill run RECIPE --out runs/corpus
FROM python:3.11-slim
# KubeRay's probes call wget
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home mill
WORKDIR /opt/corpusmill
COPY pyproject.toml constraints.txt README.md LICENSE corpusmill.py corpusmill_demo.py ./
COPY pipeline pipeline
COPY trainers trainers
COPY cluster cluster
COPY recipes recipes
# editable, so that recipes and sources lie together; kernels are compiled at the first use, into the user's cache
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[s3,cluster]'
ENV NUMBA_CACHE_DIR=/home/mill/.cache/numba
USER mill
WORKDIR /home/mill
ENTRYPOINT ["corpusmill"]
