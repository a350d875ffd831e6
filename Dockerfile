# Limner in a container (docs/install.md). For a processor:
#   docker build -t limner .
# and with a torch for NVIDIA's GPUs, whose wheels bring CUDA along:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t limner:cuda .
FROM python:3.11-slim AS wheel
WORKDIR /limner
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
LABEL org.opencontainers.image.title="Limner" \
      org.opencontainers.image.description="Train your own text-to-image Diffusion Transformer from scratch" \
      org.opencontainers.image.licenses="Apache-2.0"
# What torch.compile calls; without it Limner trains uncompiled.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt /tmp/
# The versions that are tested. torch comes first, from its own index, and the others find it there.
RUN grep -v '^-e' /tmp/requirements.txt > /tmp/pinned.txt \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' /tmp/pinned.txt)" \
    && pip install --no-cache-dir -r /tmp/pinned.txt \
    && rm /tmp/requirements.txt /tmp/pinned.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl
# Not root. Whoever it is (docker run --user), libraries want a name and a home that can be written.
RUN useradd --no-create-home --uid 1000 limner && install -d -o limner -g limner /work
ENV USER=limner HOME=/tmp HF_HOME=/work/.cache/huggingface
USER 1000
WORKDIR /work
VOLUME /work
ENTRYPOINT ["limner"]
CMD ["--help"]
