"""Kernels that start at once: each is as fresh as one that Jupyter starts."""

import os
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")


def run(client, code):
    """Run a line in a kernel and return what it printed."""
    printed = []

    def keep(message):
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=keep, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(printed).strip()


@pytest.mark.slow
def test_forked_kernels_share_nothing_but_the_imports(tmp_path, monkeypatch):
    import forked_kernel
    from jupyter_client import KernelManager

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with forked_kernel.serving(os.environ) as variables:
        monkeypatch.setenv("JUPYTER_PATH", variables["JUPYTER_PATH"])
        kernels = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            manager = KernelManager(kernel_name=forked_kernel.NAME)
            own = {"WHICH": name, "TMPDIR": str(tmp_path / name)}
            manager.start_kernel(cwd=tmp_path / name, env={**variables, **own})
            client = manager.blocking_client()
            client.start_channels()
            client.wait_for_ready(timeout=60)
            kernels.append((manager, client, name))
        seen = {}
        for _, client, name in kernels:
            assert run(client, "import sys; print('torch' in sys.modules)") == "True"
            place = run(client, "import os; print(os.getcwd(), os.environ['WHICH'], os.getpid())")
            *folder, which, process = place.split()
            assert " ".join(folder) == str(tmp_path / name)
            assert which == name
            assert run(client, "print('x' in globals(), 'mine' in dir(sys))") == "False False"
            run(client, "x = sys.mine = 1")
            temporary = run(client, "import tempfile; print(tempfile.gettempdir())")
            assert temporary == str(tmp_path / name)
            # the plots of a lesson are drawn into it
            assert run(client, "import matplotlib as m; print(m.get_backend())").endswith("inline")
            seen[name] = int(process)
        assert len(set(seen.values())) == 2

        # one that is shut down ends, and so does one whose starter is killed
        kernels[0][0].shutdown_kernel()
        kernels[1][0].shutdown_kernel(now=True)
        for process in seen.values():
            assert ended(process), f"{process} goes on"
        for _, client, _ in kernels:
            client.stop_channels()


def ended(process):
    """Wait up to ten seconds for a process to end."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
