"""Float32 means float32 whatever the user has set, and half precision gives one result for any
batch size."""

import inspect

import pytest
import torch

import fairlab as fl
from fairlab.passes import is_half, pair_batches, token_losses
from fairlab.precision import full_precision
from tiny_models import note_rows, tiny_model

TEXT = "The clerk read the letter twice and put it away. " * 8


def switches():
    """Return what torch does with float32 products now."""
    return (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.is_autocast_enabled("cpu"),
    )


@pytest.fixture
def rounding():
    """Let torch round products, as notebooks that want speed do; set it back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="switches of torch 2.9"
)
def test_products_are_exact_inside_and_as_before_outside(rounding):
    outside = switches()
    assert "bf16" in outside
    with full_precision():
        assert switches() == ("ieee", "ieee", "ieee", False)
    assert switches() == outside
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert switches() == outside


@pytest.mark.parametrize(
    "measure",
    [
        fl.next_token_divergence,
        lambda model, tokenizer, pairs: fl.article_metric(model, tokenizer, pairs[0]),
        lambda model, tokenizer, pairs: token_losses(model, tokenizer, TEXT),
        lambda model, tokenizer, pairs: fl.bias_scores(model, tokenizer, pairs),
        lambda model, tokenizer, pairs: fl.bias_scores(
            model, tokenizer, pairs, method="attribution"
        ),
        lambda model, tokenizer, pairs: fl.importance_scores(
            model, method="fisher", tokenizer=tokenizer, text=TEXT
        ),
        lambda model, tokenizer, pairs: fl.project_pair(model, tokenizer, pairs[0]).distances,
        lambda model, tokenizer, pairs: fl.generate(model, tokenizer, [pairs[0].prompt_a]),
    ],
    ids=["gap", "metric", "losses", "activation", "attribution", "fisher", "projection", "text"],
)
def test_measuring_heeds_no_setting_that_rounds(measure, tokenizer, some_pairs, request):
    tiny = tiny_model(num_hidden_layers=2)
    exact = measure(tiny, tokenizer, some_pairs[:3])
    request.getfixturevalue("rounding")
    again = measure(tiny, tokenizer, some_pairs[:3])
    if isinstance(exact, list | float):
        assert again == exact
    else:
        assert (torch.as_tensor(again) == torch.as_tensor(exact)).all()


def test_older_releases_have_one_switch(monkeypatch):
    """Torch before 2.9 knows neither fp32_precision nor its places."""
    monkeypatch.setattr("fairlab.precision.hasattr", lambda *_: False, raising=False)
    seen = []
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    with full_precision():
        assert seen == ["highest"]
    assert seen[0] == "highest" and set(seen[1:]) == {"medium"}  # said twice: see `undoing`


def test_the_decorated_functions_keep_their_signatures():
    assert "batch_size" in inspect.signature(fl.run_lm_eval).parameters
    assert fl.generate.__doc__.startswith("Continue each prompt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_batch_size_changes_nothing(dtype, tokenizer, some_pairs):
    tiny = tiny_model(dtype=dtype)
    assert is_half(tiny)
    gaps = [
        fl.next_token_divergence(tiny, tokenizer, some_pairs, batch_size=size)
        for size in (2, 8, 32)
    ]
    scores = [fl.bias_scores(tiny, tokenizer, some_pairs, batch_size=size) for size in (2, 8, 32)]
    prompts = [pair.prompt_a for pair in some_pairs[:4]]
    texts = [
        fl.generate(tiny, tokenizer, prompts, max_length=40, batch_size=size) for size in (1, 4)
    ]
    assert all(torch.equal(gaps[0], other) for other in gaps)
    assert all(torch.equal(scores[0], other) for other in scores)
    assert texts[0] == texts[1]
    assert all(len(batch.pairs) == 1 for batch in pair_batches(tiny, tokenizer, some_pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_half_precision_each_continuation_is_written_alone(dtype, tokenizer, some_pairs):
    tiny = tiny_model(dtype=dtype)
    rows = note_rows(tiny)
    fl.sample_continuations(tiny, tokenizer, some_pairs[:1], n=2, max_new_tokens=2)
    assert set(rows) == ({1} if is_half(tiny) else {4})


def test_in_float32_pairs_run_together(tokenizer, some_pairs):
    tiny = tiny_model()
    assert not is_half(tiny)
    assert max(len(batch.pairs) for batch in pair_batches(tiny, tokenizer, some_pairs)) > 1
