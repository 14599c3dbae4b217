"""About how long a plan takes, told before its first long part.

Contents: `Paces`, with `reading_paces` and `paces_of` (a short pass against the clock),
`seconds_of` (each part of a plan), `seconds_of_choice`, `tell_time`.

A part is so many passes through the model, with so many tokens in them all together. A pass takes
some time whatever is in it, nearly all of it on a GPU; on a CPU it is the tokens that count.
"""

import math
import sys
import time
from dataclasses import dataclass, replace

import fairlab as fl
from fairlab import processes
from fairlab.cli.neurons import is_causal
from fairlab.cli.output import counted
from fairlab.cli.pairs import start_of
from fairlab.cli.reports import NEW_TOKENS, sampled_changes, shown_prompts

THERE_AND_BACK = 3  # a pass forward and backward takes about as long as so many forward
SAMPLED_TOKENS = 30  # of each continuation, as `sample_continuations` has it


@dataclass(frozen=True)
class Paces:
    """Seconds for the parts of the work, 0 for what a plan does not do.

    For a pass, and for each token in it; for writing one token after all prompts that the page
    shows; for a sampled token.
    """

    start: float
    read: float
    write: float = 0.0
    sample: float = 0.0

    def reading(self, passes, tokens):
        """Return the seconds for so many passes with so many tokens in all of them."""
        return passes * self.start + tokens * self.read


def reading_paces(loaded, held_out, metric, batch_size):
    """Read a few prompts and a short text against the clock."""
    from fairlab.evaluation.compare import no_cut
    from fairlab.evaluation.readings import read_cut

    model, tokenizer = loaded

    def read(pairs, text_tokens):
        text = start_of(held_out.text, tokenizer, text_tokens)
        first_few = fl.HeldOut(held_out.pairs[:pairs], held_out.neutral[:1], text)
        options = {"metric": metric, "batch_size": batch_size}
        seconds = timed(read_cut, model, tokenizer, first_few, no_cut(model), **options)
        of_prompts = prompt_tokens(tokenizer, first_few.everything)[1]
        return seconds, of_prompts + text_length(tokenizer, text)

    read(1, 16)  # what is done for the first time takes longer
    (short_time, few_tokens), (long_time, many_tokens) = read(1, 16), read(4, 128)
    token = max(long_time - short_time, 0) / (many_tokens - few_tokens)
    # each of the two was one pass for the prompts and one for the text
    return Paces(start=max(short_time - few_tokens * token, 0) / 2, read=token)


def paces_of(plan, loaded, material, metric, page):
    """Read a few prompts and a short text, and write a few tokens, against the clock."""
    from fairlab.models import input_device

    model, tokenizer = loaded
    held_out = material.held_out

    def write(count):
        prompts = shown_prompts(material.choosing, held_out)
        length = max(len(tokenizer(prompt).input_ids) for prompt in prompts) + count
        return timed(fl.generate, model, tokenizer, prompts, max_length=length)

    def sample(count):
        # many together take hardly longer than few, but on a CPU
        on_cpu = input_device(model).type == "cpu"
        options = {"n": 4 if on_cpu else 32, "max_new_tokens": count}
        pairs = held_out.pairs[:1]
        return timed(fl.sample_continuations, model, tokenizer, pairs, **options) / options["n"]

    paces = reading_paces(loaded, held_out, metric, plan.batch_size)
    if page:
        paces = replace(paces, write=write(4) / 4)
    if plan.continuations:
        # both read the prompts, and the longer one samples 4 tokens more after each of the two
        shorter, longer = sample(2), sample(6)
        paces = replace(paces, sample=max(longer - shorter, 0) / (4 * 2))
    return paces


def timed(function, *arguments, **options):
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - start


def seconds_of(plan, tokenizer, material, to_choose, cuts, readings, paces):
    """Return about how many seconds each part of a plan takes: what → seconds.

    Several processes share the choice and the readings; the rest is the first one's.
    `to_choose` are the methods that have to choose, with their pairs; `cuts` those that are judged;
    `readings` how many have to be taken.
    """
    from fairlab.passes import WINDOW

    held_out = material.held_out
    prompts, tokens = prompt_tokens(tokenizer, held_out.everything)
    text = text_length(tokenizer, held_out.text)
    passes, windows = math.ceil(prompts / plan.batch_size), math.ceil(text / WINDOW)
    one = paces.reading(passes + windows, tokens + text)
    # that reads the pairs once more, and tries 21 factors on each prediction in the text
    flattening = one
    chosen = 0
    for method, pairs in to_choose.items():
        given = (method, pairs, plan.batch_size, plan.pair_options, paces)
        chosen += seconds_of_choice(tokenizer, *given)
    written = NEW_TOKENS * (1 + len(cuts)) * paces.write
    each = (1 + len(sampled_changes(cuts, plan.seed))) * plan.continuations  # texts of a prompt
    prompts, tokens = prompt_tokens(tokenizer, held_out.pairs)
    sampled = each * (tokens * paces.read + prompts * SAMPLED_TOKENS * paces.sample)
    return {
        "to choose": chosen,
        "to measure": math.ceil(readings / processes.count()) * one + flattening,
        "for texts": written,
        "for sampled texts": sampled,
    }


def seconds_of_choice(tokenizer, method, taken, batch_size, pair_options, paces):
    """Return about how many seconds it takes to choose by a method, on the pairs that it takes."""
    pairs, neutral = taken
    causal = is_causal(method)
    prompts, tokens = prompt_tokens(tokenizer, [*pairs, *(neutral or ())])
    times = THERE_AND_BACK if causal else 1
    passes, tokens = math.ceil(prompts / batch_size) * times, tokens * times
    if (method.partition("+")[2] or ("fisher" if causal else "maw")) == "fisher":
        text = fl.load_text("calibration", pair_options.language)
        count = text_length(tokenizer, text)
        passes += THERE_AND_BACK * math.ceil(count / 256)
        tokens += THERE_AND_BACK * count
    return paces.reading(passes, tokens) / processes.count()


def prompt_tokens(tokenizer, pairs):
    """Return how many different prompts some pairs have, and how many tokens these have."""
    from fairlab.pairs import prompt_ids

    prompts = set()
    for pair in pairs:
        prompts |= {pair.prompt_a, pair.prompt_b}
    return len(prompts), sum(len(prompt_ids(tokenizer, prompt)) for prompt in prompts)


def text_length(tokenizer, text):
    """Return how many tokens a text has."""
    return len(tokenizer(text, verbose=False).input_ids)


def tell_time(seconds, readings=0, kept=0):
    """Say about how long the parts take, what → seconds, where that is worth saying.

    And how many readings have to be taken, if any, beside those that were kept.
    """
    total = sum(seconds.values())
    if total < 5:
        return
    parts = [f"{in_words(part)} {what}" for what, part in seconds.items() if part >= 1]
    notice = f"about {in_words(total)}: {', '.join(parts)}"
    if readings or kept:
        notice += f"; {counted(readings, 'reading')}"
    if kept:
        notice += f", and {kept} more kept from before"
    print(f"fairlab: {notice}", file=sys.stderr)


def in_words(seconds):
    """Return a time in words: 35 seconds, 4 minutes."""
    if seconds < 90:
        return counted(round(seconds), "second")
    return counted(round(seconds / 60), "minute")
