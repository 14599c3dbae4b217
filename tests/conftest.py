"""Fixtures that the tests share."""

import os
import shutil
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import fairlab as fl


@pytest.fixture(scope="session")
def default():
    """Load the default model once; tests must leave it as it is (a fixture below checks)."""
    return fl.load_model()


@pytest.fixture(scope="session")
def model(default):
    return default[0]


@pytest.fixture(scope="session")
def tokenizer(default):
    return default[1]


@pytest.fixture(scope="session")
def bos_tokenizer(tokenizer):
    """Make the tokenizer one that puts <|endoftext|> before every text, as Llama's and Gemma's do."""
    changed = deepcopy(tokenizer)
    token = "<|endoftext|>"
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, changed.convert_tokens_to_ids(token))]
    )
    changed.bos_token = token
    return changed


@pytest.fixture(scope="session")
def some_pairs():
    """Pick pairs of several lengths that share prompts with each other."""
    pairs = fl.load_pairs(split="train")
    crossed = [replace(pairs[0], prompt_b=pairs[1].prompt_b), replace(pairs[1], prompt_b=pairs[0].prompt_b)]
    return pairs[:10] + crossed + pairs[200:206]


@pytest.fixture(scope="session")
def datasets():
    """Find the folder with public data sets, or skip."""
    folder = os.environ.get("FAIRLAB_DATASETS")
    if not folder:
        pytest.skip("FAIRLAB_DATASETS is not set: no public data sets to measure on")
    return Path(folder)


@pytest.fixture
def checkout(tmp_path):
    """Copy what git tracks, as it is now, into a repository of its own."""
    root, copy = Path(__file__).parent.parent, tmp_path / "checkout"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "--all"], [*author, "commit", "-q", "-m", "as it is now"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


@pytest.fixture(autouse=True, scope="session")
def _default_model_stays_as_it_is(default):
    before = {name: parameter.clone() for name, parameter in default[0].named_parameters()}
    yield
    for name, parameter in default[0].named_parameters():
        assert torch.equal(before[name], parameter), f"a test changed {name} of the shared model"
