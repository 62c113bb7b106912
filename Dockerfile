# The page in a container, as a normal user:
#   docker build -t imrseg . && docker run --rm -p 7860:7860 imrseg
# For a GPU: docker build --build-arg TORCH_INDEX=https://pypi.org/simple -t imrseg . and docker run --gpus all ...
FROM python:3.12-slim

# The user that Hugging Face's Docker Spaces run a container as.
RUN useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user /home/user/app
USER 1000
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False
WORKDIR /home/user/app

# What changes seldom comes first. PyTorch's own index has it without CUDA, which PyPI's brings along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --chown=user requirements.txt ./
RUN grep "^torch" requirements.txt > torch.txt \
    && pip install --user --index-url "${TORCH_INDEX}" -r torch.txt \
    && pip install --user -r requirements.txt

COPY --chown=user assets/ATTRIBUTION.md assets/
COPY --chown=user assets/examples assets/examples
COPY --chown=user checkpoints checkpoints
COPY --chown=user imrseg imrseg
COPY --chown=user demo.py LICENSE ./

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'], timeout=9)"]
CMD ["python", "demo.py"]
