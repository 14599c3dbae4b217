"""Small inputs that failed once, by kind, each with others of its kind.

Each comes out right, or is refused by a sentence that names the argument, what is allowed and what
came. Contents: numbers of other libraries; files and labels of benchmarks; special tokens; values
that are not finite; models of unusual build; modes and wrappers; settings that a model brings;
what is written and read elsewhere; pairs of one's own; the command line.
"""

import json
import math
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

import fairlab as fl
from fairlab import cli, weights
from fairlab.evaluation.chance import random_selections
from fairlab.files import read_json_lines
from fairlab.gates import table_shape
from fairlab.passes import token_losses
from fairlab.suites.likelihoods import log_likelihoods
from fairlab.suites.tasks import read_rows
from fairlab.weights import find_weights, hub_errors_explained
from tiny_models import tiny_model

CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))
SCORES = torch.arange(72.0).view(3, 24)
TEXT = "The clerk read the letter twice and put it away. " * 8


@pytest.fixture(scope="module")
def small():
    return tiny_model()


@pytest.fixture(scope="module")
def pairs():
    return fl.load_pairs("race", split="train")[:3]


# ---- numbers of other libraries


NUMBERS = {
    "count": lambda n: fl.select_neurons(SCORES, count=n(2)).neurons,
    "fraction": lambda n: fl.select_neurons(SCORES, fraction=n(0.25)).neurons,
    "n": lambda n: [cut.to_json() for cut in random_selections(CUT, n(2))],
    "seed": lambda n: [cut.to_json() for cut in random_selections(CUT, 2, seed=n(3))],
    "bias_weight": lambda n: fl.hybrid_scores(SCORES, SCORES.flip(0), bias_weight=n(0.5)).tolist(),
    "floor": lambda n: fl.guarded_scores(SCORES, SCORES + 1, floor=n(4.0)).tolist(),
    "protect": lambda n: fl.guarded_scores(SCORES, SCORES + 1, protect=n(0.25)).tolist(),
}
WITH_A_MODEL = {
    "batch_size": lambda n, *given: fl.next_token_divergence(*given, batch_size=n(4)).tolist(),
    "window": lambda n, model, tokenizer, _: fl.perplexity(model, tokenizer, TEXT, window=n(16)),
    "samples": lambda n, *given: continuations(*given, n=n(2)),
    "sampling seed": lambda n, *given: continuations(*given, seed=n(7)),
    "max_new_tokens": lambda n, *given: continuations(*given, max_new_tokens=n(3)),
    "max_length": lambda n, *given: written(*given, max_length=n(24)),
    "num_beams": lambda n, *given: written(*given, num_beams=n(2), max_length=24),
    "k": lambda n, model, tokenizer, pairs: fl.top_token_shifts(
        model, tokenizer, pairs[0], k=n(3)
    ).to_json(),
    "start": lambda n, model, tokenizer, pairs: fl.project_pair(
        model, tokenizer, pairs[0], point="residual", start=n(1)
    ).distances.tolist(),
    "scale": lambda n, model, tokenizer, _: ablated(model, n(0.5)),
    "layers": lambda n, model, tokenizer, _: recorded(model, n(1)),
}


def continuations(model, tokenizer, pairs, **options):
    settings = {"n": 2, "max_new_tokens": 2} | options
    return fl.sample_continuations(model, tokenizer, pairs[:1], **settings).to_json()


def written(model, tokenizer, pairs, **options):
    return fl.generate(model, tokenizer, [pairs[0].prompt_a], **options)


def ablated(model, scale):
    with torch.no_grad(), fl.ablate(model, CUT, scale=scale):
        return model(torch.tensor([[5, 6, 7]])).logits.sum().item()


def recorded(model, layer):
    with fl.record(model, ["residual"], layers=[layer]) as seen, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    return seen["residual", 1].sum().item()


def as_numpy(value):
    """Return what pandas and NumPy hand out: a scalar of their own."""
    return np.int64(value) if isinstance(value, int) else np.float32(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_numpy_is_a_number(name):
    assert NUMBERS[name](as_numpy) == NUMBERS[name](lambda value: value)


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_a_number_of_numpy_is_a_number_to_what_runs_a_model(name, small, tokenizer, pairs):
    measure = WITH_A_MODEL[name]
    expected = measure(lambda value: value, small, tokenizer, pairs)
    assert measure(as_numpy, small, tokenizer, pairs) == expected


@pytest.mark.parametrize("value", [True, None, "2", 2.5, math.nan, -1, np.array([2]), [2]])
@pytest.mark.parametrize("name", [*NUMBERS, *WITH_A_MODEL])
def test_what_is_no_such_number_is_named(name, value, small, tokenizer, pairs):
    if name in ("bias_weight", "floor", "protect", "scale", "fraction") and value in (2.5, -1):
        return
    if name == "start" and value is None:
        return  # the default
    given = () if name in NUMBERS else (small, tokenizer, pairs)
    argument = {"samples": "n", "sampling seed": "seed"}.get(name, name)
    with pytest.raises((ValueError, TypeError), match=f"{argument}.*: .*(expected|got)"):
        (NUMBERS | WITH_A_MODEL)[name](lambda _: value, *given)


# ---- files and labels of benchmarks


BOOLQ = {"question": "is it so", "passage": "It is so.", "label": 1}


def lines(*rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


FILES = {
    "a line separator in a text": (
        "m.jsonl",
        lines(BOOLQ | {"passage": "One.\u2028Two."}),
        "utf-8",
    ),
    "a next line in a text": ("m.jsonl", lines(BOOLQ | {"passage": "One.\x85Two."}), "utf-8"),
    "a form feed in a text": ("m.jsonl", lines(BOOLQ | {"passage": "One.\x1cTwo."}), "utf-8"),
    "a byte order mark": ("m.jsonl", lines(BOOLQ), "utf-8-sig"),
    "line ends of Windows": ("m.jsonl", lines(BOOLQ).replace("\n", "\r\n"), "utf-8"),
    "JSON lines in UTF-16": ("m.jsonl", lines(BOOLQ), "utf-16"),
    "a name in capitals": ("M.JSONL", lines(BOOLQ), "utf-8"),
}
CSVS = {
    "a mark": ("m.csv", ",", "utf-8-sig"),
    "a name in capitals": ("MINE.CSV", ",", "utf-8"),
    "an old encoding": ("m.csv", ",", "cp1252"),
    "two bytes a letter": ("m.csv", ",", "utf-16"),
    "semicolons": ("m.csv", ";", "cp1252"),
    "tabs": ("m.csv", "\t", "utf-16"),
}


@pytest.mark.parametrize("name", FILES)
def test_json_lines_are_read_as_written(name, tmp_path):
    file, text, encoding = FILES[name]
    (tmp_path / file).write_text(text, encoding=encoding, newline="")
    (row,) = read_rows("boolq", tmp_path / file)
    assert row == json.loads(text)


@pytest.mark.parametrize("name", CSVS)
def test_tables_of_benchmarks_are_read_as_written(name, tmp_path):
    file, mark, encoding = CSVS[name]
    text = (
        f'question{mark}passage{mark}label\r\nis it so{mark}"Première.\n\nSeconde."{mark}True\r\n'
    )
    (tmp_path / file).write_text(text, encoding=encoding, newline="")
    (row,) = read_rows("boolq", tmp_path / file)
    assert row == {"question": "is it so", "passage": "Première.\n\nSeconde.", "label": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lines(BOOLQ) + '{"question": "half', r"data: line 2 of .*m\.jsonl is no JSON"),
        (f"[{lines(BOOLQ).strip()}]", r"data: line 1 of .*m\.jsonl needs an object"),
        ("\n\n7\n", r"data: line 3 of .*m\.jsonl needs an object, .*; got 7"),
    ],
)
def test_a_line_that_is_no_row_is_named(text, says, tmp_path):
    (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_json_lines("data", tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("label", "read"),
    [(True, 1), (False, 0), (1.0, 1), ("0.0", 0), ("False", 0), (" true ", 1), (np.int64(1), 1)],
)
def test_labels_are_read_however_they_are_written(label, read):
    assert read_rows("boolq", [BOOLQ | {"label": label}])[0]["label"] == read


@pytest.mark.parametrize("label", [-1, 2, 0.5, math.nan, None, "", "yes", [1]])
def test_labels_that_say_nothing_are_refused(label):
    with pytest.raises(
        ValueError, match=r"data: item 0 of boolq needs a label that is one of 0, 1"
    ):
        read_rows("boolq", [BOOLQ | {"label": label}])


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("boolq", BOOLQ | {"passage": None}, "needs a text as passage; got None"),
        ("boolq", BOOLQ | {"question": " "}, "needs a text as question; got ' '"),
        ("lambada_openai", {"text": ""}, "needs a text as text"),
        ("lambada_openai", {"text": "Alone\n"}, "needs a word before its last one; got 'Alone'"),
        ("wikitext", {"page": "\n"}, "needs a text as page"),
    ],
)
def test_rows_without_their_text_are_refused(task, row, says):
    with pytest.raises(ValueError, match=f"data: item 0 of {task} {says}"):
        read_rows(task, [row])


@pytest.mark.parametrize("less", ["The same.", "The same. ", "The same.\r\n"])
def test_a_sentence_beside_itself_is_refused(less):
    row = {"sent_more": "The same.", "sent_less": less, "bias_type": "age"}
    with pytest.raises(ValueError, match="item 0 of crows_pairs_english needs two different sent"):
        read_rows("crows_pairs_english", [row])


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n", "\u00a0"])
def test_a_blank_behind_a_text_is_not_scored(end):
    text = "The clerk read the letter"
    assert read_rows("lambada_openai", [{"text": text + end}]) == [{"text": text}]
    (row,) = read_rows("boolq", [BOOLQ | {"passage": BOOLQ["passage"] + end}])
    assert row == BOOLQ


BBQ = json.loads(
    fl.data_path("suites/mini_bbq.jsonl").read_text(encoding="utf-8").split("\n", 1)[0]
)
INFO = BBQ["answer_info"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ans2": "No idea"}, ".*one answer that is worded as the set words it, one of Unknown"),
        ({"ans2": "unknown"}, ".*one answer that is worded as the set words it"),
        ({"ans1": "Unknown"}, "two different groups and one answer"),
        ({"ans1": BBQ["ans0"]}, "two different groups and one answer"),
        ({"category": "Hair"}, "a category that is one of Age, .*; got 'Hair'"),
        ({"category": None}, "a category that is one of Age"),
        ({"answer_info": {}}, "the group of 'The 78-year-old' in answer_info"),
        ({"answer_info": INFO | {"ans1": []}}, "the group of 'The 24-year-old' in answer_info"),
        ({"answer_info": INFO | {"ans1": ["", ""]}}, "the group of 'The 24-year-old'"),
        ({"answer_info": str(INFO)}, r".* as a \.jsonl file holds it; got '\{"),
        ({"additional_metadata": {}}, r'\{"stereotyped_groups"'),
        ({"additional_metadata": "old"}, r'\{"stereotyped_groups"'),
        ({"question_polarity": "negative"}, "a question_polarity that is one of neg, nonneg"),
        ({"context_condition": "ambiguous"}, "a context_condition that is one of ambig, disambig"),
        ({"label": 3}, "a label that is one of 0, 1, 2; got 3"),
        ({"context": None}, "a text as context"),
    ],
)
def test_a_question_that_the_harness_can_not_count_is_refused(change, says):
    with pytest.raises(ValueError, match=f"data: item 1 of bbq needs {says}"):
        read_rows("bbq", [BBQ, BBQ | change])


def test_questions_from_a_table_are_refused_by_a_sentence(tmp_path):
    pd.DataFrame([BBQ]).to_csv(tmp_path / "bbq.csv", index=False)
    with pytest.raises(
        ValueError, match=r"data: item 0 of bbq needs .* as a \.jsonl file holds it"
    ):
        read_rows("bbq", tmp_path / "bbq.csv")


@pytest.mark.parametrize("data", [7, None, {"question": "is it so"}])
def test_what_is_no_list_of_rows_is_refused(data):
    with pytest.raises(TypeError, match="data: expected a file or a list of rows for boolq; got"):
        read_rows("boolq", data)


# ---- special tokens


ROWS = {
    "boolq": [BOOLQ],
    "lambada_openai": [{"text": "The clerk read the letter"}],
    "crows_pairs_english": [
        {"sent_more": "The old man slept.", "sent_less": "The young man slept.", "bias_type": "age"}
    ],
    "wikitext": [{"page": " = Tides = \n The tide comes in and goes out again . \n"}],
    "bbq": [BBQ],
}


START, END = "<|endoftext|>", "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    """Make tokenizers that put a token before every text, behind it, and on both sides."""
    changed = {"": tokenizer}
    for name, around in {
        "start": f"{START} $A",
        "end": f"$A {END}",
        "both": f"{START} $A {END}",
    }.items():
        changed[name] = deepcopy(tokenizer)
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, END)]
        changed[name].backend_tokenizer.post_processor = TemplateProcessing(
            single=around, special_tokens=ids
        )
        if name != "end":
            changed[name].bos_token = START
    return changed


def items(model, tokenizer, *tasks):
    data = {task: ROWS[task] for task in tasks}
    return fl.run_lm_eval(model, tokenizer, list(tasks), data=data).items


def test_what_a_tokenizer_puts_behind_a_text_is_not_scored(small, tokenizers):
    plain = items(small, tokenizers[""], *ROWS)
    assert items(small, tokenizers["end"], *ROWS) == plain
    # where nothing stands before a text, the harness puts the start token there itself: it is there
    # once, also where the tokenizer does the same
    *context, pairs, page = items(small, tokenizers["both"], *list(ROWS)[:4])
    assert [pairs, page] == plain[2:4]
    # a context has it in front
    assert context == items(small, tokenizers["start"], *list(ROWS)[:2])
    assert context[0]["log_odds"] != plain[0]["log_odds"]


def test_losses_of_a_text_know_the_tokens_round_it(small, tokenizers):
    losses = {name: token_losses(small, each, TEXT) for name, each in tokenizers.items()}
    assert torch.equal(losses["end"], losses[""])
    assert torch.equal(losses["both"], losses["start"])
    assert len(losses["start"]) == len(losses[""]) + 1


@pytest.fixture(scope="module")
def few_tokens():
    return tiny_model(vocab_size=2000)


@pytest.mark.parametrize(
    "name",
    ["the gap", "decisions", "a projection", "texts", "samples", "perplexity", "slopes", "Fisher",
     "BBQ", "activations"],
)  # fmt: skip
def test_a_tokenizer_of_another_model_is_refused(name, few_tokens, tokenizer, pairs):
    with pytest.raises(ValueError, match=r"tokenizer: it makes token \d+, .* from 0 to 1999"):
        READS[name](few_tokens, tokenizer, pairs)


@pytest.mark.parametrize("padding", [None, "[PAD]", "<pad>"])
def test_padding_that_the_model_does_not_know_changes_nothing(padding, small, tokenizer):
    """Pairs and prompts of several lengths, which are padded."""
    several = fl.load_pairs("gender", split="train")[::20]
    prompts = [pair.prompt_a for pair in several]
    changed = deepcopy(tokenizer)
    changed.pad_token = None
    if padding:  # as many do, without a row for it in the embedding
        changed.add_special_tokens({"pad_token": padding})
        assert changed.pad_token_id >= small.config.vocab_size
    for measure in (fl.next_token_divergence, fl.decision_gap):
        assert torch.equal(measure(small, changed, several), measure(small, tokenizer, several))
    texts = fl.generate(small, changed, prompts, max_length=30)
    assert texts == fl.generate(small, tokenizer, prompts, max_length=30)


# ---- values that are not finite


READS = {
    "the gap": lambda *given: fl.next_token_divergence(*given),
    "decisions": lambda *given: fl.decision_gap(*given),
    "the metric": lambda model, tokenizer, pairs: fl.article_metric(model, tokenizer, pairs[0]),
    "layers": lambda *given: fl.layer_differences(*given),
    "a projection": lambda model, tokenizer, pairs: fl.project_pair(model, tokenizer, pairs[0]),
    "shifts": lambda model, tokenizer, pairs: fl.top_token_shifts(model, tokenizer, pairs[0]),
    "texts": lambda model, tokenizer, pairs: fl.generate(model, tokenizer, [pairs[0].prompt_a]),
    "one beam": lambda model, tokenizer, _: fl.generate(model, tokenizer, ["A man"], num_beams=1),
    "samples": lambda *given: fl.sample_continuations(*given, n=1, max_new_tokens=1),
    "perplexity": lambda model, tokenizer, _: fl.perplexity(model, tokenizer, TEXT),
    "activations": lambda *given: fl.bias_scores(*given),
    "slopes": lambda *given: fl.bias_scores(*given, method="attribution"),
    "weights": lambda model, *_: fl.importance_scores(model, method="l2"),
    "Fisher": lambda model, tokenizer, _: fl.importance_scores(
        model, method="fisher", tokenizer=tokenizer, text=TEXT
    ),
    "tries": lambda model, tokenizer, pairs: fl.refine_scores(
        model, tokenizer, SCORES, pairs, count=1
    ),
    "BBQ": lambda model, tokenizer, _: items(model, tokenizer, "bbq"),
    "likelihoods": lambda model, *_: log_likelihoods(model, [([5, 6], [7])], 1, max_length=8),
}


@pytest.fixture(scope="module", params=[math.nan, math.inf, -math.inf])
def broken(request):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = request.param
    return model


@pytest.mark.parametrize("name", READS)
def test_a_weight_that_is_not_finite_is_refused(name, broken, tokenizer, pairs):
    with pytest.raises(ValueError, match=r"model: .* not finite"):
        READS[name](broken, tokenizer, pairs)


# ---- precision


@pytest.mark.parametrize("name", ["the gap", "decisions", "activations", "slopes"])
def test_in_half_precision_there_is_one_number(name, tokenizer, pairs):
    model = tiny_model(dtype=torch.bfloat16)
    some = partial(READS[name], model, tokenizer)
    if name in ("the gap", "decisions"):  # the order of the pairs changes nothing, either
        assert torch.equal(some(pairs), some(pairs[::-1]).flip(0))
    method = {"method": "attribution"} if name == "slopes" else {}
    measure = {"the gap": fl.next_token_divergence, "decisions": fl.decision_gap}
    measure = measure.get(name, fl.bias_scores)
    small, large = (measure(model, tokenizer, pairs, batch_size=n, **method) for n in (2, 32))
    assert torch.equal(small, large)


# ---- models of unusual build


IDS = torch.tensor([[5, 6, 7, 8]])
BUILT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def built(name, **options):
    """Build a small random model of a real class, which knows few tokens unless told otherwise."""
    config = getattr(transformers, name)(**BUILT | options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def gemma_3n(sparsity):
    return built(
        "Gemma3nTextConfig",
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=8,
        intermediate_size=[24] * 3,
        activation_sparsity_pattern=sparsity,
    )


class NormInBetween(torch.nn.Module):
    """A GLU with something between its gate and its last matrix."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = torch.nn.Linear(32, 24), torch.nn.Linear(32, 24)
        self.down_proj, self.between = torch.nn.Linear(24, 32), between

    def forward(self, x):
        h = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(self.between(h))


def with_mlp(between):
    model = tiny_model()
    model.model.layers[1].mlp = NormInBetween(between).eval()
    return model


UNLIKE = {
    "sparsity in some layers": lambda: gemma_3n([0.95, 0.0, 0.5]),
    "sparsity in the last layer": lambda: gemma_3n([0.0, 0.0, 0.5]),
    "a norm": lambda: with_mlp(lambda h: torch.nn.functional.rms_norm(h, h.shape[-1:])),
    "a norm with weights": lambda: with_mlp(torch.nn.LayerNorm(24)),
    "a competition": lambda: with_mlp(lambda h: h.softmax(-1)),
    "the largest alone": lambda: with_mlp(lambda h: h * (h == h.amax(-1, keepdim=True))),
    "BitNet": lambda: built("BitNetConfig"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_neurons_that_depend_on_each_other_are_refused(name):
    model = UNLIKE[name]()
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError, match=r"model: .* MLP of layer \d of .*(depends on|can't be run)"
    ):
        fl.prune(model, CUT)
    with pytest.raises(ValueError, match="model: "), fl.ablate(model, CUT):
        pass
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "model",
    [
        lambda: gemma_3n([0.0] * 3),
        lambda: with_mlp(torch.nn.Identity()),
        lambda: with_mlp(torch.tanh),
        lambda: built("Glm4Config"),
        lambda: tiny_model("Phi-3", dtype=torch.bfloat16),
        lambda: tiny_model("Granite", dtype=torch.float16),
    ],
)
def test_where_neurons_stand_alone_a_cut_is_the_silence_of_its_neurons(model):
    model = model()
    with torch.no_grad():
        with fl.ablate(model, CUT):
            silent = model(IDS).logits
        cut = fl.prune(model, CUT)(IDS).logits
    rounding = 0.05 if model.dtype.itemsize < 4 else 1e-5
    assert torch.allclose(silent, cut, atol=rounding * cut.abs().max())


def hybrid(**options):
    return built(
        "Qwen3_5TextConfig",
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        **options,
    )


def mamba(name, **options):
    return built(name, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, **options)


def granite_hybrid():
    return mamba(
        "GraniteMoeHybridConfig",
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=24,
        layers_block_type=["attention", "mamba", "attention"],
    )


def short_convolutions():
    return built("Lfm2Config", layer_types=["conv", "full_attention", "conv"])


def test_a_metric_that_lacks_a_point_says_so(tokenizer, pairs):
    model = hybrid(vocab_size=49152)
    with pytest.warns(
        UserWarning, match="leaves out attention_output, which not every layer of Qw"
    ):
        assert fl.article_metric(model, tokenizer, pairs[0]) > 0
    with pytest.raises(ValueError, match="points: not every layer of Qwen.* has attention_output"):
        fl.layer_differences(model, tokenizer, pairs, points=["attention_output"])


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (granite_hybrid, "Granite"),
        (short_convolutions, "Lfm2"),
        (lambda: mamba("BambaConfig", attn_layer_indices=[1]), "Bamba"),
    ],
)
def test_a_metric_without_the_mlp_is_refused(model, kind, tokenizer, pairs):
    with pytest.raises(ValueError, match=f"model: the article's metric needs .*; {kind}.* has"):
        fl.article_metric(model(), tokenizer, pairs[0])


def test_a_dense_model_is_no_mixture_of_experts():
    with pytest.raises(ValueError, match=r"has no mlp with .*it holds .*shared_mlp") as raised:
        fl.importance_scores(granite_hybrid())
    assert "experts" not in str(raised.value)


def test_layers_of_two_widths_are_told_by_their_widths():
    model = built(
        "Gemma4TextConfig",
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
        use_double_wide_mlp=True,
        num_kv_shared_layers=1,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        sliding_window=8,
        num_experts=None,
        enable_moe_block=False,
        global_head_dim=8,
    )
    with pytest.raises(ValueError, match=r"selection: made for 3 layers of 24 .* of 24 or 48"):
        fl.prune(model, CUT)
    with pytest.raises(
        ValueError, match=r"model: its layers have different widths \(24 or 48 neur"
    ):
        table_shape(model)


# ---- modes and wrappers


class Adapter(torch.nn.Module):
    """What PEFT puts in the place of a matrix."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


class Peft(torch.nn.Module):
    """What PEFT puts round a model."""

    def __init__(self, model):
        super().__init__()
        self.model, self.peft_config = model, {}


def with_an_adapter():
    model = tiny_model()
    model.model.layers[2].self_attn.q_proj = Adapter(model.model.layers[2].self_attn.q_proj)
    return model


MERGE = (ValueError, r"has adapters .* model = model\.merge_and_unload\(\)")
NO_MODEL = (TypeError, "model: expected a PreTrainedModel, such as load_model returns; got")
WRAPPED = {
    "adapters round it": (lambda: Peft(tiny_model()), MERGE),
    "an adapter in it": (with_an_adapter, MERGE),
    "copies of it": (
        lambda: torch.nn.DataParallel(tiny_model()),
        (TypeError, r"got DataParallel; give what it wraps, model\.module"),
    ),
    "its decoder alone": (lambda: tiny_model().model.layers, NO_MODEL),
    "nothing": (lambda: None, NO_MODEL),
    "a name": (lambda: "org/model", NO_MODEL),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_no_plain_model_is_refused(name, tokenizer, pairs):
    make, (kind, says) = WRAPPED[name]
    model = make()
    for measure in ("the gap", "decisions", "texts", "perplexity", "slopes", "weights", "samples"):
        with pytest.raises(kind, match=says):
            READS[measure](model, tokenizer, pairs)
    with pytest.raises(kind, match=says):
        fl.prune(model, CUT)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "another dtype": lambda: default_dtype(torch.bfloat16),
    "a precise dtype": lambda: default_dtype(torch.float64),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_has_set_changes_no_number(name, small, tokenizer, pairs):
    def numbers():
        measures = ("the gap", "decisions", "the metric", "slopes", "Fisher", "tries", "weights")
        found = [READS[each](small, tokenizer, pairs) for each in measures]
        return [torch.as_tensor(each, dtype=torch.float64) for each in found]

    expected = numbers()
    with SETTINGS[name]():
        before = torch.get_default_dtype(), torch.is_inference_mode_enabled()
        found = numbers()
        assert (torch.get_default_dtype(), torch.is_inference_mode_enabled()) == before
    for number, wanted in zip(found, expected, strict=True):
        assert torch.equal(number, wanted)


@pytest.mark.parametrize("name", ["slopes", "Fisher"])
def test_a_model_without_slopes_is_refused(name, tokenizer, pairs):
    with torch.inference_mode():
        model = tiny_model()
    with pytest.raises(ValueError, match=r"model: it was loaded inside torch\.inference_mode\(\)"):
        READS[name](model, tokenizer, pairs)


@pytest.mark.parametrize("point", ["down_proj_input", "down_proj", "residual"])
def test_what_is_recorded_of_a_cut_does_not_depend_on_the_order(point, small):
    with torch.no_grad():
        with fl.record(small, [point]) as outer, fl.ablate(small, CUT):
            small(IDS)
        with fl.ablate(small, CUT), fl.record(small, [point]) as inner:
            small(IDS)
        with fl.record(small, [point]) as uncut:
            small(IDS)
    assert all(torch.equal(outer[key], inner[key]) for key in inner)
    assert not torch.equal(inner[point, 2], uncut[point, 2])
    if point == "down_proj_input":
        assert not outer[point, 0][..., [1, 2]].any()


# ---- settings that a model brings


@pytest.mark.parametrize(
    "setting",
    [
        {"stop_strings": ["e", "a", " "]},
        {"bad_words_ids": [[token] for token in range(3, 2000)]},
        {"sequence_bias": [[[token], 50.0] for token in range(100, 110)]},
        {"exponential_decay_length_penalty": (1, 9.0)},
        {"renormalize_logits": True, "length_penalty": 9.0, "diversity_penalty": 0.5},
        {"num_return_sequences": 3},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_a_model_brings_changes_no_text(setting, tokenizer):
    model, prompt = tiny_model(), [fl.ARTICLE_PAIR.prompt_a]
    expected = fl.generate(model, tokenizer, prompt, max_length=20)
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    assert fl.generate(model, tokenizer, prompt, max_length=20) == expected


@pytest.mark.parametrize(
    "words", [["themself"], ["he", "xenotransplant"], [""], [" "], [3], ["he", None]]
)
def test_a_word_that_can_not_be_left_out_is_refused(words, small, tokenizer, pairs):
    with pytest.raises(ValueError, match="leave_out: expected words that are one token each"):
        fl.next_token_divergence(small, tokenizer, pairs, leave_out=words)


@pytest.mark.parametrize("words", ["he", None, 3])
def test_what_is_no_list_of_words_is_refused(words, small, tokenizer, pairs):
    with pytest.raises(TypeError, match="leave_out: expected a list of words; got"):
        fl.next_token_divergence(small, tokenizer, pairs, leave_out=words)


# ---- what is written and read elsewhere


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("Llama", {"rope_theta": 77.0}),
        ("Gemma 3", {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}),
        ("Phi-3", {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}),
    ],
)
def test_older_releases_find_the_base_of_the_positions(family, rope, tokenizer, tmp_path):
    """transformers 4 reads these names, and would take another base without a word."""
    model = tiny_model(family)
    if family == "Llama":
        model.config.rope_parameters["rope_theta"] = 77.0
    fl.save_model(model, tokenizer, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in rope} == rope
    assert "rope_scaling" not in written
    settings = json.loads(
        (tmp_path / "model" / "tokenizer_config.json").read_text(encoding="utf-8")
    )
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    assert config.rope_parameters == model.config.rope_parameters


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors", POINTER, r"model\.safetensors is a pointer of Git LFS"),
        ("tokenizer.json", POINTER, r"tokenizer\.json is a pointer of Git LFS"),
        ("tokenizer.model", POINTER, r"tokenizer\.model is a pointer of Git LFS"),
        ("config.json", POINTER, r"config\.json is a pointer of Git LFS"),
        ("config.json", b'{"model_type": "lla', r"config\.json can't be read as JSON"),
        ("generation_config.json", b"", r"generation_config\.json can't be read as JSON"),
        ("tokenizer_config.json", b"\xff\xfe{", r"tokenizer_config\.json can't be read as JSON"),
    ],
)
def test_half_a_model_folder_is_one_sentence(file, content, says, tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"whole")
    assert find_weights(tmp_path) == (str(tmp_path), False)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"name: .*{says}"):
        find_weights(tmp_path)


def test_half_a_vocabulary_is_one_sentence():
    says = "name: a file of here can't be read as JSON .*Git LFS"
    with pytest.raises(ValueError, match=says), hub_errors_explained("here"):
        json.loads('{"half')


@pytest.mark.parametrize("name", ["X.GGUF", "x.gguf", "x.Gguf"])
def test_a_gguf_file_is_known_by_its_ending(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=f"name: .*{name} can't be read as a GGUF model"):
        find_weights(tmp_path / name)
    with pytest.raises(ValueError, match="name: no such GGUF file"):
        find_weights(tmp_path / f"no-{name}")


# ---- pairs of one's own


def file_of(tmp_path, text, name="m.csv", encoding="utf-8"):
    (tmp_path / name).write_text(text, encoding=encoding, newline="")
    return tmp_path / name


@pytest.mark.parametrize(
    "words",
    [
        [("Black", "white"), ("African American", "European American")],
        [("gay", "straight"), ("openly gay", "openly straight")],
        [("Muslim", "Christian"), ("young Muslim", "young Christian")],
    ],
)
def test_no_sentence_is_on_both_sides(words, tmp_path):
    sentences = ["The {} man called the office, and", "My {} friend read the letter. Then",
                 "Two {} guests came to the house", "The {} cook saw a bird and"]  # fmt: skip
    rows = [f'"{s.format(a)}","{s.format(b)}"' for s in sentences for a, b in words]
    found = fl.read_pairs(file_of(tmp_path, "\n".join(["prompt_a,prompt_b", *rows])))
    sides = {}
    for pair, sentence in zip(found, [s for s in sentences for _ in words], strict=True):
        sides.setdefault(sentence, set()).add(pair.split)
    assert sorted(map(sorted, sides.values())) == [["held_out"], ["train"], ["train"], ["train"]]


@pytest.mark.parametrize(
    ("rows", "templates"),
    [
        (["老厨师走了,小厨师走了", "老师傅来,小师傅来"], ["{}厨师走了", "{}师傅来"]),
        (["彼は医者だ,女は医者だ", "彼は走る,女は走る"], ["{}は医者だ", "{}は走る"]),
        (["หมอชายมา,หมอหญิงมา", "ครูชายไป,ครูหญิงไป"], ["หมอ{}มา", "ครู{}ไป"]),
    ],
)
def test_scripts_without_blanks_have_sentences(rows, templates, tmp_path):
    found = fl.read_pairs(file_of(tmp_path, "\n".join(["prompt_a,prompt_b", *rows])))
    assert [pair.template for pair in found] == templates
    assert [pair.split for pair in found] == ["train", "held_out"]


@pytest.mark.parametrize("column", ["split", "attribute_split"])
@pytest.mark.parametrize("value", ["testing", "Test", "heldout", "dev"])
def test_a_misspelt_split_is_refused(column, value, tmp_path):
    text = f"prompt_a,prompt_b,{column}\nThe old man,The young man,{value}\n"
    with pytest.raises(ValueError, match=f"row 2, {column}: {column} must be .*; got '{value}'"):
        fl.read_pairs(file_of(tmp_path, text))


def test_words_of_the_test_pairs_are_none_of_a_file(tmp_path):
    text = "prompt_a,prompt_b,attribute_split\nThe old man,The young man,test\n"
    with pytest.raises(ValueError, match="attribute_split must be train or held_out; got 'test'"):
        fl.read_pairs(file_of(tmp_path, text))


@pytest.mark.parametrize("end", [" ", "\t", "\u00a0", "\u202f", "\u3000", "\u2003"])
def test_a_blank_behind_a_prompt_is_refused(end, small, tokenizer):
    pair = fl.PromptPair(f"The old man{end}", f"The young man{end}")
    (row,) = fl.check_pairs(tokenizer, [pair]).itertuples()
    assert not row.valid and not row.measurable
    with pytest.raises(ValueError, match="prompt_a and prompt_b end in a blank"):
        fl.next_token_divergence(small, tokenizer, [pair])


@pytest.mark.parametrize("names", [["text", "without pronouns"], ["perplexity", "gap"]])
def test_any_name_is_a_category(names, small, tokenizer, pairs):
    named = [replace(pair, category=name) for pair, name in zip(pairs, names, strict=False)]
    held_out = fl.HeldOut(named, pairs[2:], TEXT)
    table = fl.compare(small, tokenizer, {"cut": CUT}, held_out, n_random=1, metric=False).table
    gaps = table[(table.row == "category") & (table.measure == "gap")]
    assert gaps.category.tolist() == names


# ---- the command line


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file/x.csv", "can't be written: no folder can be made or changed in"),
        ("", "expected a file to write; got the folder"),
        ("file", "exists; choose another name"),
    ],
)
@pytest.mark.parametrize("command", ["diagnose", "score", "compare"])
def test_where_a_table_can_not_go_is_said_first(command, place, says, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").touch()
    monkeypatch.setattr(fl, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setattr("sys.argv", ["fairlab", command, "--out", str(tmp_path / place)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capfd.readouterr().err
    assert (end.value.code, told.count("\n")) == (2, 1)
    assert "out: " in told and says in told
