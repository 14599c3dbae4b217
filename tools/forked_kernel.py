"""A Jupyter kernel that starts at once: forked from a process in which the imports are done.

Each lesson has a kernel of its own, and importing torch, transformers and the plotting libraries
takes each of them seconds. Here one process imports them, before any of them is used, and every
kernel is a fork of it: its memory is a copy, so no lesson sees what another one did.

    python tools/forked_kernel.py serve SOCKET             # the process that is forked
    python tools/forked_kernel.py start SOCKET CONNECTION  # what Jupyter runs as the kernel

`serving` starts the first and names the kernel for Jupyter. For Linux: Windows
can't fork, and on macOS a fork after such imports is not safe.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NAME = "forked"
QUIET = {  # a progress bar would be an output of its cell
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# what the first cells of the lessons import, and what these import when a model is loaded
MODULES = [
    "ipykernel.kernelapp",
    "IPython.core.interactiveshell",
    "matplotlib.pyplot",
    "pandas",
    "scipy.stats",
    "seaborn",
    "sklearn.metrics",
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "ipywidgets",
]


@contextmanager
def serving(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Serve forks while the block runs; yield the environment in which Jupyter finds them.

    What a library reads from the environment when it is imported is read from this one.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "socket"
        command = [sys.executable, __file__]
        spec = {
            "argv": [*command, "start", str(place), "{connection_file}"],
            "display_name": "Python, imports done",
            "language": "python",
            "interrupt_mode": "message",
        }
        kernel = Path(folder) / "kernels" / NAME / "kernel.json"
        kernel.parent.mkdir(parents=True)
        kernel.write_text(json.dumps(spec), encoding="utf-8")
        paths = [folder, *filter(None, [environment.get("JUPYTER_PATH")])]
        environment = {**environment, **QUIET, "JUPYTER_PATH": os.pathsep.join(paths)}
        server = subprocess.Popen([*command, "serve", str(place)], env=environment)
        try:
            yield environment
        finally:
            server.kill()
            server.wait()


def serve(place: str) -> None:
    """Import, then fork a kernel for everyone who connects and sends what it needs."""
    # a kernel sets this before its first import; matplotlib reads it when it is imported
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    for module in MODULES:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is not waited for
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run_kernel(connection)
        connection.close()


def run_kernel(connection: socket.socket) -> None:
    """Be the kernel; end with whoever asked for it."""
    from ipykernel.kernelapp import IPKernelApp

    asked = json.loads(connection.makefile(encoding="utf-8").readline())
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # found anew: the imports have asked for it, and TMPDIR may differ
    sys.path[0] = ""  # as in a kernel that Jupyter started in this folder
    with open(os.devnull, "wb") as nowhere:  # for what a kernel logs; cells print by messages
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)

    def end_with_the_other() -> None:
        connection.recv(1)  # returns when the other end is gone
        os._exit(1)

    threading.Thread(target=end_with_the_other, daemon=True).start()
    IPKernelApp.launch_instance(argv=["-f", asked["connection"]])
    os._exit(0)


def start(place: str, connection_file: str) -> None:
    """Ask for a kernel, and end when it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        # the server may still be about to listen; it answers when its imports are done, which
        # takes long where nothing of them has been read before
        for _ in range(900):
            try:
                connection.connect(place)
                break
            except OSError:
                time.sleep(0.1)
        asked = {
            "connection": connection_file,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
        }
        connection.sendall(json.dumps(asked).encode() + b"\n")
        connection.recv(1)  # returns when the kernel is gone


if __name__ == "__main__":
    {"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:])
