"""To the Hub, with a list of what may go there.

Contents: `push_to_hub`.
"""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from fairlab.files import as_path
from fairlab.pairs import check_kind
from fairlab.surgery import BESIDE_A_MODEL
from fairlab.weights import FILES_OF_A_MODEL

# in one file, or in shards with an index
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a folder that `save_model` and `model_card(...).save` filled to the Hugging Face Hub.

    Only the model's weights (safetensors), configuration and tokenizer and what fairlab wrote about
    it go up, from the top level of the folder, and no links; their names are printed before. A
    licence or a Notice file that the card asks for is yours to add on the Hub. You need to be
    logged in (`huggingface_hub.login()` or HF_TOKEN).

    Parameters
    ----------
    folder : path
        With config.json, safetensors weights and README.md.
    repo_id : str
        "name" or "organisation/name"; the repository is made if it is not there.
    private : bool
        Of a new repository. One that exists stays as visible as it is.

    Returns
    -------
    str
        The address of the repository.

    Raises
    ------
    ValueError
        The folder lacks config.json, safetensors weights or README.md (the model card). Nothing is
        uploaded then.
    """
    check_kind("folder", folder, (str, Path), "the path of a folder")
    check_kind("repo_id", repo_id, str, '"name" or "organisation/name"')
    folder = as_path("folder", folder)
    names = files_to_upload(folder)
    missing = [name for name in ("config.json", "README.md") if name not in names]
    if not any(WEIGHTS.fullmatch(name) and name.endswith(".safetensors") for name in names):
        missing.insert(1, "model.safetensors")
    if missing:
        raise ValueError(
            f"folder: {folder} lacks {', '.join(missing)}; fill it with "
            "fairlab.save_model(model, tokenizer, folder) and "
            "fairlab.model_card(...).save(folder / 'README.md')"
        )
    hub = HfApi()
    address = hub.create_repo(repo_id, private=private, exist_ok=True)
    print(f"to {address}: {', '.join(names)}")
    # as operations on named files: no pattern can reach further
    files = [CommitOperationAdd(name, folder / name) for name in names]
    hub.create_commit(
        repo_id=address.repo_id,
        operations=files,
        commit_message="Upload a model that fairlab cut, with its card and report",
    )
    return str(address)


def files_to_upload(folder: Path) -> list[str]:
    """Return which files of a folder may go to the Hub: known names, at the top level, no links."""
    names = []
    for path in sorted(folder.glob("*")):
        known = path.name in FILES_OF_A_MODEL or path.name in BESIDE_A_MODEL
        known = known or WEIGHTS.fullmatch(path.name)
        if known and path.is_file() and not path.is_symlink():
            names.append(path.name)
    return names
