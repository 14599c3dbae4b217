"""Find the files that come with fairlab, and write others without losing any.

Contents: `data_path`, `load_text`; `check_output` and `check_output_folder` (before the work),
`write_text` and `replace_folder` (after it).

What fairlab promises for what it writes: an output that exists is refused unless `force` is given;
an input of a command is never overwritten, not even then; what is written is complete before it
takes its name.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

_CHECKOUT = Path(__file__).parent.parent / "data"
# a wheel carries the folder inside the package
DATA = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parent / "data"


def data_path(name: str) -> Path:
    """Return the path of a file that comes with fairlab, such as "results/published.csv".

    Raises
    ------
    ValueError
        There is no such file; the message lists those there are.
    """
    known = sorted(file.relative_to(DATA).as_posix() for file in DATA.glob("*/*.*"))
    if name not in known:
        raise ValueError(f"name: expected one of {', '.join(known)}; got {name!r}")
    return DATA / name


def load_text(name: Literal["calibration", "evaluation"]) -> str:
    """Return one of the two English texts that come with fairlab: plain prose on many subjects.

    Parameters
    ----------
    name : str
        "calibration", for whatever chooses neurons; "evaluation", for what a cut costs.

    Raises
    ------
    ValueError
        Another name.
    """
    if name not in ("calibration", "evaluation"):
        raise ValueError(f"name: expected calibration or evaluation; got {name!r}")
    return data_path(f"text/{name}_en.txt").read_text(encoding="utf-8")


def check_output(
    argument: str,
    path: str | Path,
    *,
    force: bool = False,
    inputs: Sequence[str | Path | None] = (),
) -> Path:
    """Refuse an output file that would cost another one, or that can't be written, before any time
    is spent.

    Parameters
    ----------
    argument : str
        The name of the argument that the path came by, for the message.
    force : bool
        Whether a file that exists may be replaced. An input may not.
    inputs : list of path
        What is read: files and folders. None and names that are no path here are passed over.

    Returns
    -------
    Path
        The output, absolute.

    Raises
    ------
    ValueError
        The path is an input, exists, is a folder, or lies where nothing can be written.
    """
    path = Path(path).expanduser().resolve()
    _refuse_inputs(argument, path, inputs)
    if path.is_dir():
        raise ValueError(f"{argument}: expected a file to write; got the folder {path}")
    if path.exists() and not force:
        raise ValueError(
            f"{argument}: {path} exists; choose another name, or replace it with force=True (--force)"
        )
    _refuse_unwritable(argument, path)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file that is complete before it takes its name; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_output_folder(
    argument: str,
    folder: str | Path,
    *,
    beside: Sequence[str] = (),
    force: bool = False,
    inputs: Sequence[str | Path | None] = (),
) -> Path:
    """Refuse an output folder that is an input, or that holds anything but the files named in
    `beside`.

    With `force` it may hold other files; `replace_folder` says what becomes of them.

    Raises
    ------
    ValueError
        As `check_output`; also where the folder is the current one, which can't be exchanged.
    """
    folder = Path(folder).expanduser().resolve()
    _refuse_inputs(argument, folder, inputs)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{argument}: expected a folder to write to; got the file {folder}")
    if folder == Path.cwd() or folder.parent == folder:
        raise ValueError(
            f"{argument}: expected a folder that can be exchanged; got the current one, {folder}"
        )
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in held if name not in beside]
    if others and not force:
        shown = ", ".join(others[:5]) + " …" * (len(others) > 5)
        raise ValueError(
            f"{argument}: {folder} holds {shown}; choose a new folder, or replace the model in it with force=True "
            "(--force)"
        )
    _refuse_unwritable(argument, folder)
    return folder


def replace_folder(
    folder: Path, fill: Callable[[Path], None], *, stale: Callable[[str], bool]
) -> None:
    """Fill a folder beside the target and give it the target's name when it is complete.

    What the target held is carried over, but for the files whose name is `stale` and those that are
    written anew. If the computer stops in between, either the old or the new folder is there,
    whole; in the worst moment the old one under the name `FOLDER.before-…`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(fresh)
        fresh.chmod(0o777 & ~_umask())  # mkdtemp makes a folder that nobody else can read
        if folder.is_dir():
            for entry in folder.iterdir():
                if not stale(entry.name) and not (fresh / entry.name).exists():
                    copy = shutil.copytree if entry.is_dir() else shutil.copy2
                    copy(entry, fresh / entry.name)
            old = folder.with_name(f"{folder.name}.before-{os.getpid()}")
            os.rename(folder, old)
            try:
                os.rename(fresh, folder)
            except BaseException:
                os.rename(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _refuse_inputs(argument: str, path: Path, inputs: Sequence[str | Path | None]) -> None:
    for given in inputs:
        if given is None:
            continue
        source = Path(given).expanduser()
        if source.exists() and source.resolve() == path:
            raise ValueError(
                f"{argument}: {path} is an input, which is never overwritten; choose another name"
            )


def _refuse_unwritable(argument: str, path: Path) -> None:
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f"{argument}: {path} can't be written: no folder can be made or changed in {above}"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
