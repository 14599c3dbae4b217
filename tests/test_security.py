"""What comes from others can do no harm: no code of theirs runs, and what they write stays text.

Contents: what the code must not call; texts in a model card and in pictures; names that lead out
of a folder; secrets.
"""

import ast
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

import fairlab as fl
from fairlab.diagnosis import Projection
from fairlab.files import DATA
from fairlab.report.card import LINKED, escaped
from fairlab.report.page import environment
from fairlab.weights import hub_errors_explained

ROOT = Path(__file__).parent.parent
OWN_CODE = ("fairlab", "experiments", "tools", "site")
# a lesson's cells are run for its pages
ALLOWED = {("tools/explorer_pages.py", "exec"), ("tools/explorer_pages.py", "eval")}


# ---- what the code must not call


def forbidden(source):
    """Return what a source calls or imports that can run what a file holds, or a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [alias.name for alias in node.names] + [module or ""]
            roots = {name.partition(".")[0] for name in names}
            found += roots & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if last in ("read_pickle", "to_pickle", "system", "popen", "getoutput"):
            found.append(last)
        if name in ("eval", "exec", "__import__", "torch.load", "torch.save", "yaml.load"):
            found.append(name)
        for word in node.keywords:
            value = getattr(word.value, "value", word.value)
            if word.arg == "trust_remote_code" and value is not False:
                found.append("trust_remote_code")
            if word.arg in ("shell", "allow_pickle") and value is not False:
                found.append(word.arg)
    return found


def test_no_code_of_others_is_run():
    paths = [path for folder in OWN_CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 90
    found = set()
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if "node_modules" not in name:
            found |= {(name, what) for what in forbidden(path.read_text(encoding="utf-8"))}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "pd.read_pickle('x')",
        "eval('1')",
        "yaml.load(file)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=asked)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
    ],
)
def test_what_is_forbidden_is_found(line):
    assert forbidden(line)


# ---- texts of others in the model card


HOSTILE = [
    "see https://example.org/x?a=1",
    "HTTP://EXAMPLE.ORG",
    "go to www.example.org now",
    "write to ann@example.org or @ann",
    "<img src=x onerror=alert(1)> and <script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://example.org/x.png)",
    "first\n\n# A heading\n- a list\n---\n",
    "a ``b` https://example.org/`` c",
    "`https://example.org` `",
    "<https://example.org>",
    "| a | b |",
    "$x$ and $$y$$ **bold** _it_ ~~gone~~",
    "&lt;b&gt; &#60;i&#62;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_markup_in_the_card(text):
    """Nor an address that the Hub would make a link of: it looks at text, not at code."""
    line = escaped(text)
    assert "\n" not in line
    tokens = MarkdownIt("commonmark").enable("table").parse(f"- {line}\n")
    kinds = {token.type for token in tokens}
    assert kinds <= {
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close",
        "list_item_close", "bullet_list_close",
    }  # fmt: skip
    (inline,) = [token for token in tokens if token.type == "inline"]
    assert {part.type for part in inline.children} <= {"text", "code_inline", "text_special"}
    shown = "".join(part.content for part in inline.children)
    assert shown == " ".join(text.split())
    # the Hub looks at neighbouring texts as one
    texts = "".join(
        "\0" if part.type == "code_inline" else part.content for part in inline.children
    )
    assert not LINKED.search(texts)
    assert not re.search(r"(?<!\\)\$", line) or "$" not in texts


@pytest.mark.parametrize("text", ["a: b", "---", "x\ny: z", "'", "!!python/object:os.system", "{}"])
def test_no_text_is_a_field_of_the_header(text):
    from huggingface_hub import ModelCardData

    card = ModelCardData(license_name=text, base_model=text, tags=[text])
    header = yaml.safe_load(card.to_yaml())
    assert header == {"license_name": text, "base_model": text, "tags": [text]}


# ---- texts of others in pictures


@pytest.mark.parametrize("label", [r"a $\frac{1}{b", "$20k or $30k"])
def test_a_dollar_is_a_dollar_in_the_other_pictures_too(label):
    """`tests/test_safety.py` has those of comparisons, layers and shifts."""
    shares = dict.fromkeys(("change", "low", "high", "random_low", "random_high"), 0.1)
    shares |= {"neutral_change": 0.1, "flattening_scale": 1.0, "flattening_change": 0.0}
    rows = []
    for measure, row in (("gap", "headline"), ("perplexity", "text")):
        for count in (1, 2):
            facts = {"method": label, "count": count, "measure": measure, "row": row}
            rows.append(facts | {"category": label} | shares)
    table = pd.DataFrame(rows)
    overlap = {"one": [label], "other": ["b"], "words": ["demographic"], "shared": [3]}
    transfer = {"chosen_on": [label], "read_on": [label], **{k: [v] for k, v in shares.items()}}
    tokens = (label, label)
    one = np.arange(8.0).reshape(1, 2, 2, 2)
    size = np.ones((1, 2))
    projection = Projection("residual", tokens, tokens, one, size, size, size, label, "b")
    axes = [
        fl.plot_dose_response(table),
        fl.plot_tradeoff(table),
        fl.plot_overlap(pd.DataFrame(overlap | {"chance_low": [0], "chance_high": [1]})),
        fl.plot_transfer(pd.DataFrame(transfer)),
        fl.plot_projection(projection, layer=0),
        fl.plot_distances(projection),
    ]
    for ax in axes:
        ax.figure.canvas.draw()  # a formula that is none would raise here
        texts = [text for text in ax.findobj(plt.Text) if label in text.get_text()]
        assert texts, "the label is in the picture"
        assert not any(text.get_parse_math() for text in texts)


# ---- names that lead out of a folder


@pytest.mark.parametrize("name", ["../en", "en/../../x", "/etc/passwd", "..", "en\0", "*", "e?"])
def test_a_name_leads_to_no_other_folder(name):
    for call in (
        lambda: fl.data_path(name),
        lambda: fl.data_path(f"prompts/{name}"),
        lambda: fl.load_text("evaluation", language=name),
        lambda: fl.load_pairs(language=name),
    ):
        with pytest.raises(ValueError, match=r"(name|language): expected one of"):
            call()
    assert (DATA / "prompts").is_dir()


# ---- secrets


def test_a_secret_is_nowhere_in_what_is_said(monkeypatch):
    secret = "hf_" + "secret" * 5
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, secret)
    said = [str(environment())]
    for error in (OSError("401"), ValueError("trust_remote_code"), RuntimeError("size mismatch")):
        with pytest.raises((ValueError, PermissionError)) as caught, hub_errors_explained("a/b"):
            raise error
        said.append(str(caught.value))
    assert secret not in " ".join(said)
    # nothing in the package reads it: huggingface_hub alone does
    for path in (ROOT / "fairlab").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"get_token|environ\W+HF_|token=", source), path
