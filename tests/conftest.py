"""Fixtures that the tests share."""

import os
import shutil
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import fairlab as fl
from fairlab.evaluation import bits_of
from fairlab.models import find_weights

SHARING = {"test_planting", "test_compare", "test_cli", "test_report"}


def pytest_collection_modifyitems(items):
    """Mark the tests that run the real model: `make quick` leaves them out, `make robust` runs them.

    Tests that share something expensive (a fixture of their module) go to one worker.
    """
    for item in items:
        if "default" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        if item.path.stem in SHARING:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def default():
    """Load the default model once; tests must leave it as it is."""
    model, tokenizer = fl.load_model()
    before = bits_of(model)
    yield model, tokenizer
    assert bits_of(model) == before, "a test changed the weights of the shared model"


@pytest.fixture(scope="session")
def model(default):
    return default[0]


@pytest.fixture(scope="session")
def tokenizer():
    """Load the default tokenizer alone, as `load_model` does."""
    folder, _ = find_weights(fl.DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


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
