# The course in a container: `docker build -t course .`, then
#
#   docker run --rm -it -p 127.0.0.1:8888:8888 -v "$PWD/my-notebooks:/home/student/course/my-notebooks" course
#   docker run --rm course course sample "a small red ring" --help
#
# The same constraints as everywhere. PyTorch's CPU build; for a GPU:  --build-arg TORCH_INDEX=  and run with --gpus all.
# For grading (docs/instructors.md):  --build-arg EXTRAS=dev  and run as root, since the sandbox makes namespaces.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=data
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

RUN useradd --create-home student
WORKDIR /home/student/course

# what says which packages, first: a change of the course alone does not install them anew
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir course && touch course/__init__.py \
 && pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} -e ".[$EXTRAS]"

COPY --chown=student . .
RUN mkdir -p my-notebooks && chown student: . my-notebooks
USER student
EXPOSE 8888

# the address is the container's own; -p above decides who reaches it. JupyterLab prints a link with its token.
CMD ["sh", "-c", "test -e my-notebooks/00_tour.ipynb || cp notebooks/*.ipynb my-notebooks/; exec jupyter lab --ip=0.0.0.0 --no-browser my-notebooks"]
