import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import fairlab

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {
    "huggingface-hub": {"huggingface_hub"},
    "torch": {"pytorch", "pytorch-cpu"},
    "matplotlib": {"matplotlib", "matplotlib-base"},
    "seaborn": {"seaborn", "seaborn-base"},
}


def test_the_wheel_carries_the_data(tmp_path):
    """Install the wheel into a clean environment, leave the checkout, and load the pairs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("fairlab-*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # the dependencies come from this environment; its own editable fairlab does not, since a .pth is followed once
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    code = (
        "from pathlib import Path; import fairlab as fl; "
        "print(fl.__file__, len(fl.load_pairs()), len(fl.load_pairs(kind='neutral')), "
        "len(fl.load_pairs(language='es')), fl.data_path('calibration_en.txt'), fl.data_path('published.csv'), "
        "*(p for p in Path(fl.__file__).parent.iterdir() if p.name in ('report.html', 'model_card.md')))"
    )
    run = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    origin, english, neutral, spanish, *files = run.stdout.split()
    assert str(tmp_path) in origin
    assert len(files) == 4
    assert all(str(tmp_path) in file for file in files)
    counts = [
        len(fairlab.load_pairs()),
        len(fairlab.load_pairs(kind="neutral")),
        len(fairlab.load_pairs(language="es")),
    ]
    assert [int(english), int(neutral), int(spanish)] == counts


def bounds(requirements):
    return {re.match(r"[\w-]+", line)[0]: line.split(">=")[1] for line in requirements if ">=" in line}


def conda_bounds(path):
    lines = re.findall(r"^  - ([\w-]+)>=([\d.]+)$", path.read_text(), re.MULTILINE)
    return {
        next((ours for ours, theirs in CONDA_NAMES.items() if name in theirs), name): bound for name, bound in lines
    }


def test_the_conda_files_have_the_bounds_of_pyproject():
    optional = PROJECT["optional-dependencies"]
    needed = bounds(PROJECT["dependencies"]) | bounds(optional["notebooks"])
    assert conda_bounds(ROOT / "binder" / "environment.yml") == needed
    local = conda_bounds(ROOT / "environment.yml")
    assert local.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    known = needed | bounds(optional["dev"])
    assert needed.items() <= local.items() <= known.items()


def test_constraints_pin_everything_that_is_needed():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for name in (re.match(r"[\w-]+", line)[0] for line in group):
            assert name in pins


def test_versions_agree():
    assert PROJECT["version"] == fairlab.__version__
    assert f"version: {fairlab.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {fairlab.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_weights_are_pinned_by_hash():
    from fairlab.models import DEFAULT_WEIGHTS

    assert re.search(
        rf"^{re.escape(DEFAULT_WEIGHTS)} --hash=sha256:[0-9a-f]{{64}}$",
        (ROOT / "requirements-weights.txt").read_text(),
        re.MULTILINE,
    )
    assert (ROOT / "binder" / "postBuild").stat().st_mode & 0o111
    assert "set -e" in (ROOT / "binder" / "postBuild").read_text()


def test_every_public_name_is_documented():
    for name in fairlab.__all__:
        value = getattr(fairlab, name)
        assert not callable(value) or value.__doc__, name
