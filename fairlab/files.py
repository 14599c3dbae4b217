"""Find the files that come with fairlab, and write others without losing any.

Contents: `data_path`, `load_text`, `template_text`; `as_path`; `read_text`, `read_csv`,
`read_json_lines`, `read_json_table`; `readings_folder`; `check_output` and `check_output_folder`
(before the work), `write_text`, `write_texts` and `replace_folder` (after it); `whole_file`,
`may_fail`, `remove_old`, `check_room`; `keep` and `read_kept`; `temporary_folder`.

What fairlab promises for what it writes: an output that exists is refused unless `force` is given;
a file that a command was given is never overwritten, not even then (one in a folder that it was
given, only then); what is written is complete before it takes its name.
"""

import codecs
import csv
import errno
import glob
import io
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from platformdirs import user_cache_dir

Kept = TypeVar("Kept")  # what is made of a kept text
_CHECKOUT = Path(__file__).parent.parent / "data"
# a wheel carries the folder inside the package
_IS_CHECKOUT = (_CHECKOUT / "prompts" / "pairs_en.csv").is_file()
DATA = _CHECKOUT if _IS_CHECKOUT else Path(__file__).parent / "data"
TEMPLATES = Path(__file__).parent / "templates"


def data_path(name: str) -> Path:
    """Return the path of a file that comes with fairlab, such as "results/published.csv".

    Parameters
    ----------
    name : str
        Folder and file, below `data/`.

    Raises
    ------
    ValueError
        There is no such file; the message lists those there are.
    """
    known = sorted(file.relative_to(DATA).as_posix() for file in DATA.glob("*/*.*"))
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"name: expected one of {', '.join(known)}; got {name!r}")
    return DATA / name


def template_text(name: str) -> str:
    """Return the text of a file of `fairlab/templates`."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def load_text(name: Literal["calibration", "evaluation"], language: str = "en") -> str:
    """Return one of the texts that come with fairlab: plain prose on many subjects.

    Parameters
    ----------
    name : {"calibration", "evaluation"}
        "calibration", for whatever chooses neurons; "evaluation", for what a cut costs.
    language : str
        "en", "de", "fr" or "es".

    Raises
    ------
    ValueError
        Another name or language.
    """
    if not isinstance(name, str) or name not in ("calibration", "evaluation"):
        raise ValueError(f"name: expected calibration or evaluation; got {name!r}")
    known = sorted(file.stem.split("_")[1] for file in DATA.glob(f"text/{name}_*.txt"))
    if not isinstance(language, str) or language not in known:
        raise ValueError(f"language: expected one of {', '.join(known)}; got {language!r}")
    return data_path(f"text/{name}_{language}.txt").read_text(encoding="utf-8")


def as_path(argument: str, path: object, expected: str = "a path") -> Path:
    """Return a path, "~" expanded, or refuse what is none by the name of the argument."""
    try:
        found = Path(path)
    except TypeError as error:
        got = type(path).__name__
        raise TypeError(f"{argument}: expected {expected}; got {got}") from error
    if not str(path).strip():  # Path("") would be the folder one stands in
        raise ValueError(f"{argument}: expected {expected}; got {path!r}")
    try:
        found.expanduser().lstat()
    # a byte 0 is a ValueError, the home of an unknown user a RuntimeError
    except (OSError, ValueError, RuntimeError) as error:
        if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
            told = f"{argument}: expected {expected}; got a name that can't be looked up"
            raise ValueError(f"{told}: {str(path)!r:.80}") from error
    return found.expanduser()


def read_text(argument: str, path: str | Path) -> tuple[str, str]:
    """Read a text file in any of the encodings in which spreadsheets write.

    Parameters
    ----------
    argument : str
        The name of the argument that the path was given as, for the message.
    path : path
        Of the file.

    Returns
    -------
    (text, encoding)
        The encoding is "utf-8", "utf-8-sig" (with a byte order mark), "utf-16" or "cp1252", the
        older one of Windows. That one is guessed where the bytes are no UTF-8, with a warning:
        nearly any bytes are letters in it, those of other encodings the wrong ones.

    Raises
    ------
    ValueError
        There is no such file, it is a pointer of Git LFS, or it is no text file; the message has
        the line.
    """
    path = as_path(argument, path)
    if not path.is_file():
        raise ValueError(f"{argument}: no such file: {path}")
    content = path.read_bytes()
    remedy = f"open it in its program and {_IN_UTF8}"
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{argument}: {path} is a pointer of Git LFS, not the file itself; run git lfs pull "
            "there, or download the file"
        )
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"{argument}: {path} is a workbook or an archive, no text file; {remedy}")
    encodings = ("utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8", "cp1252")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ("utf-16",)
    elif content.startswith(codecs.BOM_UTF8):
        encodings = ("utf-8-sig",)
    read, place = content, 0  # of the byte that is no letter in the encoding tried last
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            read, place = error.object, error.start
            continue
        read, place = content, content.find(b"\0")  # no letter, but a sign of another encoding
        if "\0" not in text:
            if encoding == "cp1252":
                warnings.warn(f"{argument}: {path} {guess_of(text)}; {GUESSED}", stacklevel=3)
            return text, encoding
    line = read.count(b"\n", 0, place) + 1
    raise ValueError(
        f"{argument}: {path} is no text in UTF-8, UTF-16 or cp1252 (Windows): line {line} holds "
        f"the byte 0x{read[place]:02x}, which is no letter there; {remedy}"
    )


_IN_UTF8 = "save it as CSV in UTF-8 (prose as plain text)"
GUESSED = f"if a letter there is wrong, open the file in its program and {_IN_UTF8}"


def guess_of(text: str) -> str:
    """Say where to look whether a text was rightly taken for cp1252: at its first other letter."""
    for number, line in enumerate(text.split("\n"), start=1):
        if found := re.search(r"\w*[^\x00-\x7f]+\w*", line):
            told = f'so that line {number} has "{found[0]}"'
            return f"is no UTF-8 and was read as cp1252 (Windows), {told}"
    return ""


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class CsvTable:
    """What stands in a CSV file, or in JSON lines: form, header, and rows by their number.

    Parameters
    ----------
    form : str
        Its encoding, and what stands between its cells or that it holds JSON lines.
    header : list of str
        The cells of the first row; of JSON lines, the names in them.
    rows : list of (int, list of str)
        The rows below it that are not empty, with the numbers that a spreadsheet shows: the header
        is row 1. Of JSON lines, all that are not empty, with the numbers of the lines.
    lines : dict of int to int
        The line at which a row begins, by its number: another one where a line `sep=` or cells
        with line breaks stand above it.
    guess : str
        How its letters were guessed; "" where they are sure.
    """

    form: str
    header: list[str]
    rows: list[tuple[int, list[str]]]
    lines: dict[int, int]
    guess: str = ""

    def as_dicts(self) -> list[dict[str, str]]:
        """Return the rows as dicts; a cell that a row lacks is left out."""
        names = [cell.strip() for cell in self.header]
        return [dict(zip(names, cells, strict=False)) for _, cells in self.rows]


def read_csv(argument: str, path: str | Path, columns: Sequence[str]) -> CsvTable:
    """Read a CSV file as any spreadsheet writes it.

    Parameters
    ----------
    argument, path : str, path
        As in `read_text`.
    columns : list of str
        Those that are looked for, in small letters: what stands between the cells is the mark that
        finds most of them.

    Raises
    ------
    ValueError
        As `read_text`, or a quotation mark that is not closed.
    """
    text, encoding = read_text(argument, path)
    guess = guess_of(text) if encoding == "cp1252" else ""
    named = re.match(r"sep=(.)\r?\n", text)  # a line by which Excel is told the separator
    text, above = (text[named.end() :], 1) if named else (text, 0)

    def fits(separator: str) -> tuple[int, int]:
        """Count the columns that a separator finds in the header: known ones, then all."""
        header = next(filter(any, _records(text, separator, strict=False)), [])
        return sum(cell.strip().casefold() in columns for cell in header), len(header)

    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a cell may be a book
    records, lines, line = [], {}, 1
    try:
        separator = named[1] if named else max(SEPARATORS, key=fits)
        reader = _records(text, separator, strict=True)
        for number, record in enumerate(reader, start=1):
            if any(cell.strip() for cell in record):  # spreadsheets write empty rows, too
                records.append((number, record))
                lines[number] = above + line
            line = reader.line_num + 1
    except csv.Error as error:
        after = records[-1][0] if records else 0
        raise ValueError(
            f"{argument}: {path} can't be read after row {after} (from line {above + line} "
            f"on: {error}): a quotation mark is not closed, or stands alone within a cell; write "
            'it twice ("") and put the cell in quotation marks'
        ) from error
    finally:
        csv.field_size_limit(limit)
    form = f"{encoding}, {SEPARATORS.get(separator, repr(separator))} between the cells"
    return CsvTable(form, records[0][1] if records else [], records[1:], lines, guess)


def _records(text: str, separator: str, *, strict: bool) -> "csv.reader":
    # newline="" keeps the line breaks within cells
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)


def read_json_lines(argument: str, path: str | Path) -> list[dict]:
    """Read a file with one JSON object on each line; empty lines are passed over.

    Parameters
    ----------
    argument, path : str, path
        As in `read_text`.

    Raises
    ------
    ValueError
        As `read_text`, or a line that holds no JSON object, a name twice, NaN or half of a letter;
        the message has its number.
    """
    text, _ = read_text(argument, path)
    return list(_objects_by_line(argument, path, text).values())


def read_json_table(argument: str, path: str | Path, columns: Sequence[str]) -> CsvTable:
    """Read JSON lines as `read_csv` reads a table: names are columns, null is an empty cell.

    Parameters
    ----------
    argument, path, columns : str, path, list of str
        As in `read_csv`; what stands in these columns must be a text.

    Raises
    ------
    ValueError
        As `read_json_lines`, or what should be a text is none; the message has the line.
    """
    text, encoding = read_text(argument, path)
    rows = _objects_by_line(argument, path, text)
    header: dict[str, None] = {}  # a dict keeps the order, and each only once
    for row in rows.values():
        header |= dict.fromkeys(row)
    table = []
    for number, row in rows.items():
        cells = []
        for name in header:
            value = row.get(name)
            is_text = isinstance(value, str | None)
            if not is_text and name.strip().casefold() in columns:
                raise ValueError(
                    f"{argument}: line {number} of {path}: {name} must be a text; "
                    f'got {json.dumps(value)}; write it in quotation marks, such as "{name}": "…"'
                )
            cells.append(value or "" if is_text else json.dumps(value, ensure_ascii=False))
        table.append((number, cells))
    guess = guess_of(text) if encoding == "cp1252" else ""
    form = f"{encoding}, a JSON object on each line"
    return CsvTable(form, list(header), table, {number: number for number in rows}, guess)


def _objects_by_line(argument: str, path: str | Path, text: str) -> dict[int, dict]:
    """Return the object on each line of a text that is not empty, by the line's number."""
    rows = {}
    # other line ends, such as U+2028, may stand within a text
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_named_once)
            json.dumps(row, ensure_ascii=False).encode()  # half of a letter, as \ud83d, is none
        except ValueError as error:
            raise ValueError(
                f"{argument}: line {number} of {path} is no JSON ({error}); write one object on "
                "each line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{argument}: line {number} of {path} needs an object, such as "
                f'{{"text": "…"}}; got {line.strip()[:60]}'
            )
        rows[number] = row
    return rows


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number there")


def _named_once(members: list[tuple[str, object]]) -> dict:
    """Return the members of an object; refuse a name that stands twice, of which one would win."""
    names = [name for name, _ in members]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the name {twice[0]!r} stands twice in one object")
    return dict(members)


def readings_folder() -> Path:
    """Return the folder in the user's cache where the command line keeps what it measured."""
    return Path(user_cache_dir("fairlab"), "readings")


def check_output(
    argument: str,
    path: str | Path,
    *,
    force: bool = False,
    inputs: Sequence[str | Path | None] = (),
) -> Path:
    """Check before the work that an output file can be written and takes no other file's place.

    Parameters
    ----------
    argument : str
        The name of the argument that the path was given as, for the message.
    path : path
        Where the output is to stand.
    force : bool
        Whether a file that exists may be replaced. An input may not.
    inputs : list of path
        The files and folders that are read. None and names that are no path are passed over.

    Returns
    -------
    Path
        The absolute path of the output.

    Raises
    ------
    ValueError
        The path is an input, exists, is a folder, or lies where nothing can be written.
    """
    path = checked_path(argument, path, inputs)
    if path.is_dir():
        raise ValueError(f"{argument}: expected a file to write; got the folder {path}")
    if path.exists() and not force:
        raise ValueError(
            f"{argument}: {path} exists; choose another name, "
            "or replace it with force=True (--force)"
        )
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file that is complete before it takes its name; folders above it are made."""
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write text files that belong together: all are complete before one of them takes its name.

    So a full disk leaves the old ones. The names are taken one right after the other; only a stop,
    a killed process or an error in between leaves some old ones.
    """
    if not texts:
        return
    (path, text), *others = texts.items()
    # one inside the other: an ExitStack that is stopped in its own lines leaves files behind
    with whole_file(path) as file:
        file.write(text.encode())
        file.flush()  # a full disk is noticed here
        write_texts(dict(others))


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the block ends, and not where the block fails.

    Folders above it are made. What killed processes left of the same file is removed. A power cut,
    other than a killed process, may still cost what was written in the last seconds.
    """
    path = path.expanduser()  # a shell leaves the "~" of --out=~/x.csv as it is
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_old(path.parent.glob(f".{glob.escape(path.name)}.*.part"))
    # beside the target, since only within one disk is a file renamed in a single step
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    finally:  # again, since a stop may come in the middle of it
        temporary.unlink(missing_ok=True)


def remove_old(paths: Iterable[Path]) -> None:
    """Remove temporary files and folders of processes that were killed.

    Young ones stay: they may be in use, if only by a process on another computer.
    """
    for path in paths:
        with suppress(OSError):  # another process may remove it at the same time
            inside = path.iterdir() if path.is_dir() else ()
            changed = max(entry.stat().st_mtime for entry in (path, *inside))
            if time.time() - changed < 3600:  # seconds
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


@contextmanager
def may_fail(what: str, folder: Path) -> Iterator[None]:
    """Warn where something can't be kept, and go on: what was measured is worth more than that."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"{what} is not kept, since {folder} can't be written ({error}); the run goes on, and "
            "one that is stopped will do this again",
            stacklevel=4,
        )


def read_kept(path: Path | None, read: Callable[[str], Kept]) -> Kept | None:
    """Return what `read` makes of a kept text; None where it is not there, or damaged."""
    if not (path and path.exists()):
        return None
    try:
        return read(path.read_text(encoding="utf-8"))
    except Exception as error:  # a damaged file raises whatever its letters lead to
        told = f"what was kept is damaged and is made again: {path} ({error!r})"
        warnings.warn(told, stacklevel=2)
        return None


def keep(path: Path | None, text: str) -> None:
    """Keep a text, if there is a file for it; warn where it can't be written."""
    if path:
        with may_fail("what was done", path.parent):
            write_text(path, text)


def check_output_folder(
    argument: str,
    folder: str | Path,
    *,
    beside: Sequence[str] = (),
    force: bool = False,
    inputs: Sequence[str | Path | None] = (),
) -> Path:
    """Check before the work that an output folder can be written and costs no other file.

    Parameters
    ----------
    argument : str
        As in `check_output`.
    folder : path
        Where the output is to stand.
    beside : list of str
        The names of files that the folder may hold.
    force : bool
        Whether it may hold other files, too; `replace_folder` says what becomes of them.
    inputs : list of path
        As in `check_output`.

    Returns
    -------
    Path
        The absolute path of the folder.

    Raises
    ------
    ValueError
        As `check_output`; also where the folder is the current one, which can't be exchanged.
    """
    folder = checked_path(argument, folder, inputs)
    _put_back(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{argument}: expected a folder to write to; got the file {folder}")
    if folder == Path.cwd() or folder.parent == folder:
        raise ValueError(
            f"{argument}: expected a folder that can be exchanged; got the current one, {folder}"
        )
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(names - set(beside))
    if others and not force:
        shown = ", ".join(others[:5]) + " …" * (len(others) > 5)
        raise ValueError(
            f"{argument}: {folder} holds {shown}; choose a new folder, "
            "or replace the model in it with force=True (--force)"
        )
    return folder


def replace_folder(
    folder: Path, fill: Callable[[Path], None], *, stale: Callable[[str], bool]
) -> None:
    """Fill a new folder and let it take the place of `folder` when it is complete.

    If the process is killed in between, either the old or the new folder is there, whole; in the
    worst moment the old one under the name `FOLDER.before-…`, from which `check_output_folder`
    brings it back.

    Parameters
    ----------
    folder : Path
        It need not exist. The files in it are carried over, but for stale ones and those that
        `fill` writes anew.
    fill : callable
        Writes the new files into the folder that it is given.
    stale : callable
        Says of the name of an old file whether it is dropped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for private, old in _leftovers(folder):
        remove_old([private, old] if folder.is_dir() else [private])
    # beside the old one, since only within one disk is a folder renamed in a single step
    with temporary_folder(folder.parent, f".{folder.name}-{os.getpid()}-") as private:
        fresh = private / folder.name  # others may read it, as any new folder
        fresh.mkdir()
        fill(fresh)
        if not folder.is_dir():
            os.rename(fresh, folder)
            return
        for entry in folder.iterdir():
            if stale(entry.name) or (fresh / entry.name).exists():
                continue
            copy = shutil.copytree if entry.is_dir() else shutil.copy2
            copy(entry, fresh / entry.name)
        _exchange(folder, fresh)


def _exchange(folder: Path, fresh: Path) -> None:
    """Put the fresh folder in the place of the old one, which comes back if that fails."""
    old = folder.with_name(f"{folder.name}.before-{os.getpid()}")
    try:
        try:
            os.rename(folder, old)
            os.rename(fresh, folder)
        finally:
            _leave_one(folder, fresh, old)
    finally:  # again, since a stop may come in the middle of it
        _leave_one(folder, fresh, old)


def _leave_one(folder: Path, fresh: Path, old: Path) -> None:
    """Give the old folder its name back, or remove it where the fresh one has taken its place."""
    if not folder.is_dir():
        os.rename(old, folder)
    if not fresh.exists():
        shutil.rmtree(old, ignore_errors=True)


def _leftovers(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Find what killed processes may have left beside a folder that they wrote.

    Pairs of their temporary folder and of the name that the old folder had in the worst moment.
    Only both together tell it from a folder that a user gave such a name.
    """
    for private in folder.parent.glob(f".{glob.escape(folder.name)}-*"):
        named = re.fullmatch(r"(\d+)-\w+", private.name.removeprefix(f".{folder.name}-"))
        if (
            named
            and private.is_dir()
            and {entry.name for entry in private.iterdir()} <= {folder.name}
        ):
            yield private, folder.with_name(f"{folder.name}.before-{named[1]}")


def left_before(folder: Path) -> Path | None:
    """Return where a folder lies whose replacement was stopped in the worst moment, if it was."""
    if folder.exists():
        return None
    return next((old for _, old in _leftovers(folder) if old.is_dir()), None)


def _put_back(folder: Path) -> None:
    """Give a folder its name again, if the process that replaced it was killed."""
    if old := left_before(folder):
        os.rename(old, folder)
        warnings.warn(
            f"{folder} was away: a process was stopped while it replaced it; the old one is back",
            stacklevel=4,
        )


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder that its owner alone can read, and remove it with what is left in it."""
    with tempfile.TemporaryDirectory(
        dir=parent, prefix=prefix, ignore_cleanup_errors=True
    ) as folder:
        try:
            yield Path(folder)
        finally:  # and again by tempfile, since a stop may come in the middle of it
            shutil.rmtree(folder, ignore_errors=True)


def check_room(folder: Path, needed: int) -> None:
    """Raise the OSError of a full disk before the work, if a folder lacks room for some bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{needed / 1e9:.2g} GB are needed and {free / 1e9:.2g} GB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {sizes}", str(folder))


def can_be_written(folder: Path) -> bool:
    """Try to make a file in a folder: `os.access` says yes to root everywhere."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def checked_cache(cache: str | Path | None) -> Path | None:
    """Return the absolute path of a folder that keeps what was measured; None without one."""
    if cache is None:
        return None
    folder = as_path("cache", cache, "a folder").resolve()
    if os.path.isfile(folder):  # as below
        raise ValueError(f"cache: expected a folder; got the file {cache}")
    _refuse_read_only("cache", folder, [folder, *folder.parents])
    return folder


def checked_path(argument: str, path: str | Path, inputs: Sequence[str | Path | None] = ()) -> Path:
    """Return the absolute path of an output, which is no input and can be written."""
    path = as_path(argument, path).resolve()
    for source in filter(None, inputs):
        try:
            source = as_path("input", source)
        except ValueError:  # who reads it says so, by its own name
            continue
        if source.exists() and source.resolve() == path:
            raise ValueError(
                f"{argument}: {path} is an input, which is never overwritten; choose another name"
            )
    _refuse_read_only(argument, path, path.parents)
    return path


def _refuse_read_only(argument: str, path: Path, folders: Sequence[Path]) -> None:
    """Refuse an output if nothing can be written in the first of some folders that is there."""
    # of a folder that may not be entered, Path.exists would raise; "/" has no parent
    parent = next((folder for folder in folders if os.path.exists(folder)), path)
    if not parent.is_dir() or not can_be_written(parent):
        raise ValueError(
            f"{argument}: {path} can't be written: no folder can be made or changed in {parent}"
        )
