# The GPU image: the packages of requirements/gpu.txt, which contain CUDA 13, and this project. The host needs an NVIDIA
# driver 580 or newer and the NVIDIA Container Toolkit.
#   docker build -f docker/gpu.Dockerfile -t hpo-trainer:0.1.0-gpu .
#   docker run --rm --gpus all --shm-size=16g hpo-trainer:0.1.0-gpu python launch.py doctor configs/gpu_1x80g.yaml
FROM python:3.11-slim-bookworm
# Triton and flashinfer compile kernels with g++ when they first run. KubeRay's probes call wget.
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make wget && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/hpo-trainer
COPY . .
RUN requirements/install.sh .venv gpu
ENV VIRTUAL_ENV=/opt/hpo-trainer/.venv PATH=/opt/hpo-trainer/.venv/bin:$PATH
# The toolkit mounts the driver's libraries and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["python", "launch.py", "doctor"]
