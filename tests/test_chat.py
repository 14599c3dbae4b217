"""Prompts in a chat template: what they become, one BOS, and everything that takes them."""

import json
from copy import deepcopy

import pytest
import torch

import fairlab as fl
from fairlab.pairs import prompt_ids
from tiny_models import tiny_model

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
PAIR = fl.ARTICLE_PAIR


def with_template(tokenizer, template):
    changed = deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.fixture(scope="module")
def pairs():
    return fl.load_pairs("race", split="validation")[:4]


def test_a_prompt_begins_the_answer_or_is_the_message(tokenizer):
    (answer,) = fl.chat_pairs(tokenizer, [PAIR])
    assert answer.prompt_a == (
        f"{SYSTEM}<|im_end|>\n<|im_start|>user\nTell me a story.<|im_end|>\n"
        f"<|im_start|>assistant\n{PAIR.prompt_a}"
    )
    (message,) = fl.chat_pairs(tokenizer, [PAIR], request=None, system="Be brief.")
    assert message.prompt_b == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{PAIR.prompt_b}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    for pair, chat in ((answer, "answer"), (message, "message")):
        kept = {**vars(PAIR), "prompt_a": pair.prompt_a, "prompt_b": pair.prompt_b, "chat": chat}
        assert vars(pair) == kept
        assert fl.check_pairs(tokenizer, [pair]).valid.all()


def test_bos_is_never_there_twice(tokenizer, bos_tokenizer):
    bos = bos_tokenizer.bos_token_id
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (pair,) = fl.chat_pairs(with_template(bos_tokenizer, template), [PAIR], request=None)
    assert pair.prompt_a.startswith(bos_tokenizer.bos_token)
    ids = prompt_ids(bos_tokenizer, pair.prompt_a)
    assert ids == bos_tokenizer(pair.prompt_a, add_special_tokens=False).input_ids
    assert ids.count(bos) == 1
    assert bos_tokenizer(pair.prompt_a).input_ids == [bos, *ids]  # what it does by itself
    model, seen = tiny_model(), []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    fl.sample_continuations(model, bos_tokenizer, [pair], n=1, max_new_tokens=1)
    fl.generate(model, bos_tokenizer, [pair.prompt_a], max_length=len(ids) + 1)
    hook.remove()
    assert seen[-1][0].tolist() == ids
    assert all((given == bos).sum(1).eq(1).all() for given in seen)
    # a plain prompt still gets one, and a tokenizer that adds none still adds none
    assert prompt_ids(bos_tokenizer, PAIR.prompt_a) == bos_tokenizer(PAIR.prompt_a).input_ids
    assert prompt_ids(tokenizer, PAIR.prompt_a) == tokenizer(PAIR.prompt_a).input_ids


def test_what_has_no_fitting_template_is_refused(tokenizer):
    with pytest.raises(ValueError, match="tokenizer: it has no chat template; measure"):
        fl.chat_pairs(with_template(tokenizer, None), [PAIR])
    with pytest.raises(ValueError, match="pairs: they went through the chat template before"):
        fl.chat_pairs(tokenizer, fl.chat_pairs(tokenizer, [PAIR]))
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(ValueError, match="tokenizer: its chat template refuses .*: no system"):
        fl.chat_pairs(with_template(tokenizer, strict), [PAIR], request=None, system="Be brief.")


@pytest.mark.parametrize("end", [" ", "\n", ""])
def test_whatever_a_template_ends_in(tokenizer, pairs, end):
    """A blank at the end belongs to the next word; a line break stays, and no blank follows it."""
    template = f"USER: {{{{ messages[-1].content }}}} ASSISTANT:{{{{ {end!r} }}}}"
    chat = fl.chat_pairs(with_template(tokenizer, template), pairs, request=None)
    assert all(pair.prompt_a.endswith("ASSISTANT:" + end.strip(" ")) for pair in chat)
    model = tiny_model()
    outcomes = {pair.template: fl.Outcomes(("No",), ("Yes",)) for pair in pairs}
    gaps = fl.decision_gap(model, tokenizer, chat, outcomes=outcomes)
    for pair, gap in zip(chat, gaps, strict=True):
        odds = []
        for prompt in (pair.prompt_a, pair.prompt_b):
            ids = torch.tensor([tokenizer(prompt).input_ids])
            with torch.no_grad():
                log_p = model(ids).logits[0, -1].log_softmax(-1)
            words = ("No", "Yes") if end == "\n" else (" No", " Yes")
            no, yes = (tokenizer(word).input_ids for word in words)
            odds.append(log_p[no].item() - log_p[yes].item())
        assert gap.item() == pytest.approx(odds[0] - odds[1], abs=1e-4)


def test_everything_takes_chat_pairs(tokenizer, pairs, tmp_path):
    model = tiny_model(max_position_embeddings=256)
    neutral = fl.chat_pairs(tokenizer, fl.load_pairs(kind="neutral", split="validation")[:3])
    chat = fl.chat_pairs(tokenizer, pairs)
    gaps = fl.next_token_divergence(model, tokenizer, chat)
    assert (gaps != fl.next_token_divergence(model, tokenizer, pairs)).all()
    text = fl.load_text("evaluation")[:500]
    cut = fl.guarded_cut(model, tokenizer, chat, neutral, text=text, fraction=0.1)
    held_out = fl.HeldOut(chat, neutral, text)
    measured = fl.compare(model, tokenizer, {"cut": cut}, held_out, n_random=2)
    assert set(measured.table["measure"]) >= {"gap", "metric", "decision", "perplexity"}
    facts = {"model": model, "model_name": "tiny", "chosen_on": chat}
    fl.write_report(tmp_path / "page.html", measured, **facts)
    numbers = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert numbers["settings"]["chat template"] == "answer"
    plain = fl.build_neutral_pairs(tokenizer, chat)
    assert {pair.chat for pair in plain} == {""} and "<|im_start|>" not in plain[0].prompt_a
    texts = fl.sample_continuations(model, tokenizer, chat, n=2, max_new_tokens=3)
    assert list(texts["template"].unique()) == list(dict.fromkeys(p.template for p in pairs))
    with pytest.raises(ValueError, match="neutral: expected pairs that went through the chat"):
        fl.HeldOut(pairs, neutral, text)
