# The CPU image: the packages of requirements/cpu.txt, and this project.
#   docker build -f docker/cpu.Dockerfile -t hpo-trainer:0.1.0-cpu .
#   docker run --rm --shm-size=2g -v "$PWD/runs:/opt/hpo-trainer/runs" hpo-trainer:0.1.0-cpu python launch.py train configs/demo.yaml
FROM python:3.11-slim-bookworm
# DeepSpeed compiles an operator with g++. KubeRay's probes call wget.
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make wget && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/hpo-trainer
COPY . .
RUN requirements/install.sh .venv cpu
ENV VIRTUAL_ENV=/opt/hpo-trainer/.venv PATH=/opt/hpo-trainer/.venv/bin:$PATH
CMD ["python", "launch.py", "--help"]
