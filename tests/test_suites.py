import json
import math
import random
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

import fairlab as fl
from fairlab.passes import is_half
from fairlab.suites.harness import evaluate, items_of, quiet_harness
from fairlab.suites.likelihoods import log_likelihoods
from fairlab.suites.tasks import TASKS, read_rows
from tiny_models import note_rows, tiny_model

MINI = {
    "lambada_openai": fl.data_path("suites/mini_lambada.jsonl"),
    "boolq": fl.data_path("suites/mini_boolq.jsonl"),
    "crows_pairs_english": fl.data_path("suites/mini_crows.jsonl"),
    "bbq": fl.data_path("suites/mini_bbq.jsonl"),
}
PAGES = [
    " = Tides = \n The tide comes in , and it goes out again . \n",
    " = Bread = \n Rye @-@ bread is dark 's . \n",
]


@pytest.fixture(scope="module")
def small():
    return tiny_model()


def rows(task, n=5):
    return [json.loads(line) for line in MINI[task].read_text(encoding="utf-8").splitlines()][:n]


def log_p(model, tokenizer, context, continuation):
    """Sum the log-probabilities of the continuation's tokens, and say whether each is the
    likeliest."""
    start = tokenizer(context).input_ids if isinstance(context, str) else context
    ids = (
        tokenizer(context + continuation).input_ids
        if isinstance(context, str)
        else start + continuation
    )
    with torch.no_grad():
        table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(len(start) - 1, len(ids) - 1)
    return sum(table[k, ids[k + 1]].item() for k in places), all(
        table[k].argmax() == ids[k + 1] for k in places
    )


def frame_of(result):
    return pd.DataFrame(result.items)


def answers(right, task="lambada_openai"):
    return [
        {"task": task, "item": n, "cluster": None, "loglikelihood": -1.0, "acc": x}
        for n, x in enumerate(right)
    ]


class TestByHand:
    def test_lambada(self, small, tokenizer):
        result = fl.run_lm_eval(
            small, tokenizer, "lambada_openai", data={"lambada_openai": rows("lambada_openai")}
        )
        wanted = [
            log_p(small, tokenizer, *re.match(r"(.*)( \S+)$", row["text"]).groups())
            for row in rows("lambada_openai")
        ]
        items = frame_of(result)
        assert np.allclose(items.loglikelihood, [log for log, _ in wanted], atol=1e-4)
        assert items.acc.tolist() == [greedy for _, greedy in wanted]
        values = result.table.set_index("metric").value
        assert values["perplexity"] == pytest.approx(
            math.exp(-np.mean([log for log, _ in wanted])), rel=1e-4
        )

    def test_boolq(self, small, tokenizer):
        result = fl.run_lm_eval(small, tokenizer, ["boolq"], data={"boolq": rows("boolq")})
        odds = []
        for row in rows("boolq"):
            prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
            odds.append(
                log_p(small, tokenizer, prompt, " yes")[0]
                - log_p(small, tokenizer, prompt, " no")[0]
            )
        items, labels = frame_of(result), [row["label"] for row in rows("boolq")]
        assert np.allclose(items.log_odds, odds, atol=1e-4)
        assert items.acc.tolist() == [
            float((odd > 0) == label) for odd, label in zip(odds, labels, strict=True)
        ]
        assert items.cluster.tolist() == [
            "passage 0",
            "passage 0",
            "passage 2",
            "passage 2",
            "passage 4",
        ]
        row = result.table.set_index("metric").loc["acc"]
        assert row.majority == max(np.mean(labels), 1 - np.mean(labels))
        assert row.value == items.acc.mean()

    def test_crows_pairs(self, small, tokenizer):
        pairs = rows("crows_pairs_english")
        result = fl.run_lm_eval(
            small, tokenizer, "crows_pairs_english", data={"crows_pairs_english": pairs}
        )
        start = [tokenizer.convert_tokens_to_ids("<|endoftext|>")]
        odds = [
            log_p(small, tokenizer, start, tokenizer(row["sent_more"]).input_ids)[0]
            - log_p(small, tokenizer, start, tokenizer(row["sent_less"]).input_ids)[0]
            for row in pairs
        ]
        items = frame_of(result)
        assert np.allclose(items.log_odds, odds, atol=1e-3)
        assert items.pct_stereotype.tolist() == [float(odd > 0) for odd in odds]
        by_length = [len(row["sent_more"]) - len(row["sent_less"]) for row in pairs]
        assert items.shorter.tolist() == [
            {-1: "more", 0: "neither", 1: "less"}[np.sign(d)] for d in by_length
        ]

    def test_wikitext(self, small, tokenizer):
        result = fl.run_lm_eval(
            small, tokenizer, "wikitext", data={"wikitext": [{"page": page} for page in PAGES]}
        )
        read = [
            " = Tides = \n The tide comes in, and it goes out again. \n",
            " = Bread = \n Rye-bread is dark's. \n",
        ]
        read = [text.replace(" \n", "\n").replace("\n ", "\n") for text in read]
        start = [tokenizer.convert_tokens_to_ids("<|endoftext|>")]
        logs = [log_p(small, tokenizer, start, tokenizer(text).input_ids)[0] for text in read]
        words = [len(re.split(r"\s+", page)) for page in PAGES]
        assert np.allclose(frame_of(result).loglikelihood, logs, atol=1e-3)
        perplexity = math.exp(-sum(logs) / sum(words))
        assert result.table.value.item() == pytest.approx(perplexity, rel=1e-4)

    def test_bbq(self, small, tokenizer):
        chosen = [rows("bbq", 60)[k] for k in (0, 1, 14, 27, 55)]
        items = frame_of(fl.run_lm_eval(small, tokenizer, "bbq", data={"bbq": chosen}))
        for row, item in zip(chosen, items.to_dict("records"), strict=True):
            prompt = f"{row['context']}\n\nQ: {row['question']}\nA:"
            groups = [n for n in range(3) if row["answer_info"][f"ans{n}"][1] != "unknown"]
            stereotyped = [g.lower() for g in row["additional_metadata"]["stereotyped_groups"]]
            bears = [
                row["answer_info"][f"ans{n}"][1].lower().replace("lowses", "low ses") in stereotyped
                for n in groups
            ]
            biased = groups[bears.index(row["question_polarity"] == "neg")]
            (other,) = set(groups) - {biased}
            mean = {}
            for n in groups:
                length = len(tokenizer(f"{prompt} {row[f'ans{n}']}").input_ids) - len(
                    tokenizer(prompt).input_ids
                )
                mean[n] = log_p(small, tokenizer, prompt, f" {row[f'ans{n}']}")[0] / length
            assert item["log_odds"] == pytest.approx(mean[biased] - mean[other], abs=1e-4)
            unknown = [
                log_p(small, tokenizer, prompt, f" {text}")[0] for text in ("Unknown", "Not known")
            ]
            sums = {n: log_p(small, tokenizer, prompt, f" {row[f'ans{n}']}")[0] for n in groups}
            if max(unknown) > max(sums.values()):
                assert item["answered"] == 0


class TestAgainstTheHarness:
    @pytest.mark.parametrize("task", ["lambada_openai", "boolq", "crows_pairs_english", "wikitext"])
    def test_the_metrics_are_its_own(self, task, small, tokenizer, monkeypatch):
        self.compare(
            task,
            rows(task, 12) if task in MINI else [{"page": page} for page in PAGES],
            small,
            tokenizer,
            monkeypatch,
        )

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_logits_only_where_they_are_read_give_the_same(self, batch_size, small, tokenizer):
        from lm_eval.models.huggingface import HFLM

        draw = random.Random(0)
        texts = [[draw.randrange(49_000) for _ in range(draw.randrange(3, 50))] for _ in range(6)]
        requests = [
            (text, [answer]) for text in texts[:3] for answer in (5, 7, 7)
        ]  # one row, several answers
        requests += [(text, text[::-1][:4]) for text in texts] + [(texts[0], texts[1])]
        requests += [(texts[2] + texts[3] + texts[4], [1, 2, 3])]  # too long: cut on the left
        small_best = small(input_ids=torch.tensor([texts[5]])).logits[0, -1].argmax().item()
        requests += [(texts[5], [small_best])]
        plain = HFLM(pretrained=small, tokenizer=tokenizer, batch_size=batch_size, max_length=64)
        wanted = plain._loglikelihood_tokens(
            [(("", ""), *request) for request in requests], disable_tqdm=True
        )
        found = log_likelihoods(small, requests, batch_size, max_length=64)
        assert np.allclose([log for log, _ in found], [log for log, _ in wanted], atol=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
        assert found[-1][1]

    def test_bbq_with_one_pass_a_context_is_the_same(self, small, tokenizer, monkeypatch):
        """All answers behind one context, against a row for each in the harness as it is."""
        from lm_eval.models.huggingface import HFLM

        data = rows("bbq", 60)
        result = self.compare("bbq", data, small, tokenizer, monkeypatch)
        assert 0 < result.table.set_index("metric").value["share of unknown"] < 1
        with quiet_harness():
            plain = HFLM(pretrained=small, tokenizer=tokenizer, batch_size=8)
            measured = evaluate(plain, "bbq", data)
        items = frame_of(result)
        theirs = pd.DataFrame(items_of("bbq", measured, data, range(60), tokenizer))
        same = ["cluster", "category", "ambiguous", "acc", "biased", "answered", "forced_acc"]
        assert items[same].equals(theirs[same])
        assert np.allclose(items.log_odds, theirs.log_odds, atol=1e-5)

    def test_a_context_of_bbq_is_run_once(self, small, tokenizer):
        shapes = []

        def look(module, arguments, options):
            shapes.append(options["input_ids"].shape)

        hook = small.register_forward_pre_hook(look, with_kwargs=True)
        try:
            data = {"bbq": rows("bbq", 7)}
            fl.run_lm_eval(small, tokenizer, "bbq", data=data, batch_size=4)
        finally:
            hook.remove()
        assert [rows for rows, _ in shapes] == [4, 3]

    def compare(self, task, data, small, tokenizer, monkeypatch):
        import lm_eval

        seen, evaluate = [], lm_eval.evaluate
        monkeypatch.setattr(
            lm_eval, "evaluate", lambda **options: seen.append(evaluate(**options)) or seen[-1]
        )
        result = fl.run_lm_eval(small, tokenizer, task, data={task: data})
        values = result.table.set_index("metric").value
        theirs = {
            n.removesuffix(",none"): v
            for n, v in seen[0]["results"][task].items()
            if "stderr" not in n
        }
        shared = set(values.index) & set(theirs)
        assert shared >= {
            name for name in theirs if name.startswith(("acc", "perplexity", "word", "pct"))
        }
        for name in shared:
            assert values[name] == pytest.approx(theirs[name], abs=1e-6), name
        if task == "bbq":
            found = {
                name for name in theirs if "bias_score" in name and not math.isnan(theirs[name])
            }
            assert found <= set(values.index)
        return result

    @pytest.mark.parametrize("family", ["Gemma 3", "Qwen3", "GPT-2", "OPT"])
    def test_answers_side_by_side_are_as_if_asked_alone(self, family, bos_tokenizer):
        """Padding, places and masks, on other families, behind BOS."""
        model = tiny_model(family, **({"sliding_window": 128} if family == "Gemma 3" else {}))
        data = rows("bbq", 60)[3::12]
        result = fl.run_lm_eval(model, bos_tokenizer, "bbq", data={"bbq": data}, batch_size=3)
        for item, row in zip(frame_of(result).log_odds, data, strict=True):
            prompt, mean = f"{row['context']}\n\nQ: {row['question']}\nA:", []
            for answer in (
                row[f"ans{n}"] for n in range(3) if row["answer_info"][f"ans{n}"][1] != "unknown"
            ):
                length = len(bos_tokenizer(f"{prompt} {answer}").input_ids) - len(
                    bos_tokenizer(prompt).input_ids
                )
                mean.append(log_p(model, bos_tokenizer, prompt, f" {answer}")[0] / length)
            assert abs(item) == pytest.approx(abs(mean[0] - mean[1]), abs=1e-4)

    def test_a_sliding_window_that_is_too_short_is_refused(self, tokenizer):
        data = {"bbq": MINI["bbq"]}
        message = "data: the longest question of bbq has .* tokens, the model's sliding window 8"
        with pytest.raises(ValueError, match=message):
            fl.run_lm_eval(tiny_model("Gemma 3"), tokenizer, "bbq", data=data)

    def test_a_question_longer_than_the_model_reads_is_refused(self, tokenizer):
        model = tiny_model(max_position_embeddings=32)
        with pytest.raises(ValueError, match="model: it reads up to 32 tokens"):
            fl.run_lm_eval(model, tokenizer, "bbq", data={"bbq": MINI["bbq"]})

    def test_hub_ids_are_those_of_the_harness(self):
        import lm_eval

        tasks = TASKS.copy()
        assert tasks.pop("stereoset").hub_id == ""  # the harness lacks it, and nothing is fetched
        for name, task in tasks.items():
            folder = Path(lm_eval.__file__).parent / "tasks" / task.folder
            texts = [f"\n{path.read_text(encoding='utf-8')}" for path in folder.glob("*.yaml")]
            texts = [text for text in texts if f"\ndataset_path: {task.hub_id}\n" in text]
            texts = [text for text in texts if f"\ndataset_name: {task.configuration}\n" in text]
            texts = [text for text in texts if f"\ntask: {name}\n" in text]
            assert texts, name
            assert any(f"\n{task.split}_split: {task.split}\n" in text for text in texts), name


class TestRun:
    def test_needs_no_network_and_makes_no_noise(self, small, tokenizer, monkeypatch, capfd):
        def refuse(*arguments):
            raise OSError("the network is off")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        state, weights = random.getstate(), [p.clone() for p in small.parameters()]
        data = {task: rows(task, 2) for task in MINI} | {"wikitext": [{"page": PAGES[0]}]}
        result = fl.run_lm_eval(small, tokenizer, list(data), data=data)
        assert result.table.task.unique().tolist() == list(data)
        assert capfd.readouterr() == ("", "")
        assert random.getstate() == state
        assert all(torch.equal(a, b) for a, b in zip(weights, small.parameters(), strict=True))

    def test_the_harness_gets_its_bars_back(self):
        from lm_eval.api import model

        before, state = model.tqdm, random.getstate()
        with pytest.raises(KeyError, match="goes wrong"), quiet_harness():
            assert model.tqdm is not before
            random.random()
            raise KeyError("something goes wrong")
        assert model.tqdm is before
        assert random.getstate() == state

    def test_samples_are_drawn_with_a_fixed_seed(self, small, tokenizer):
        def numbers(wanted):
            result = fl.run_lm_eval(
                small, tokenizer, "boolq", data={"boolq": MINI["boolq"]}, samples={"boolq": wanted}
            )
            return frame_of(result).item.tolist()

        drawn = numbers(6)
        assert len(set(drawn)) == 6
        assert drawn != list(range(6))
        assert drawn == numbers(6)
        assert numbers([9, 3]) == [3, 9]
        result = fl.run_lm_eval(
            small, tokenizer, "boolq", data={"boolq": MINI["boolq"]}, samples={"boolq": [3, 9]}
        )
        alone = fl.run_lm_eval(small, tokenizer, "boolq", data={"boolq": [rows("boolq", 10)[9]]})
        assert frame_of(result).log_odds[1] == pytest.approx(frame_of(alone).log_odds[0], abs=1e-5)

    def test_csv_and_raw_text(self, small, tokenizer, tmp_path):
        pd.DataFrame(rows("boolq", 4)).to_csv(tmp_path / "boolq.csv", index=False)
        (tmp_path / "pages.txt").write_text(
            "".join(PAGES) + " = = Section = = \n More . \n", encoding="utf-8"
        )
        data = {"boolq": tmp_path / "boolq.csv", "wikitext": str(tmp_path / "pages.txt")}
        items = frame_of(fl.run_lm_eval(small, tokenizer, ["boolq", "wikitext"], data=data))
        assert (items.task == "boolq").sum() == 4
        pages = PAGES[0].rstrip("\n"), PAGES[1] + " = = Section = = \n More . \n"
        assert items.words.dropna().tolist() == [len(re.split(r"\s+", page)) for page in pages]

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            (["hellaswag"], {}, "tasks: expected one of lambada_openai.*got 'hellaswag'"),
            ([], {}, "tasks: expected at least one"),
            (["boolq"], {"data": {"bbq": []}}, "data: expected one of boolq; got 'bbq'"),
            (["boolq"], {"samples": {"bbq": 3}}, "samples: expected one of boolq; got 'bbq'"),
            (["boolq"], {"data": {"boolq": []}}, "data: expected at least one row for boolq"),
            (
                ["boolq"],
                {"data": {"boolq": [{"question": "q"}]}},
                "data: item 0 of boolq has no column 'passage'",
            ),
            (
                ["boolq"],
                {"data": {"boolq": MINI["boolq"]}, "samples": {"boolq": 99}},
                "samples of boolq: expected a whole number from 1 to 44; got 99",
            ),
            (
                ["boolq"],
                {"data": {"boolq": MINI["boolq"]}, "samples": {"boolq": [1, 44]}},
                "item numbers from 0 to 43",
            ),
            (
                ["boolq"],
                {"data": {"boolq": MINI["boolq"]}, "samples": {"boolq": [1, 1]}},
                "different item numbers",
            ),
            (
                ["boolq"],
                {"data": {"boolq": Path("README.md")}},
                "expected a .jsonl or .csv file for boolq",
            ),
            (["boolq"], {"batch_size": "auto"}, "batch_size: expected a whole number"),
        ],
    )
    def test_bad_input_is_refused(self, arguments, options, message, small, tokenizer, monkeypatch):
        monkeypatch.chdir(Path(__file__).parent.parent)
        with pytest.raises(ValueError, match=message):
            fl.run_lm_eval(small, tokenizer, arguments, **options)

    def test_a_model_in_training_and_a_missing_file_are_refused(self, tokenizer):
        model = tiny_model().train()
        with pytest.raises(ValueError, match="training mode"):
            fl.run_lm_eval(model, tokenizer, "bbq", data={"bbq": MINI["bbq"]})
        assert model.training
        with pytest.raises(FileNotFoundError, match="no file nowhere.jsonl for bbq"):
            fl.run_lm_eval(model.eval(), tokenizer, "bbq", data={"bbq": "nowhere.jsonl"})

    @pytest.mark.parametrize("package", ["lm_eval", "datasets"])
    def test_without_the_extra_it_says_what_to_install(
        self, package, small, tokenizer, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "fairlab[eval]"')):
            fl.run_lm_eval(small, tokenizer, "bbq")


class TestStatistics:
    def test_the_standard_error_of_a_mean_is_the_usual_one(self):
        right = random.Random(1).choices([0, 1], k=50)
        row = fl.summarize_items(answers(right)).set_index("metric").loc["acc"]
        assert row.standard_error == pytest.approx(np.std(right, ddof=1) / math.sqrt(50))
        twice = [item | {"cluster": f"passage {item['item'] % 50}"} for item in answers(right * 2)]
        assert fl.summarize_items(twice).set_index("metric").loc[
            "acc"
        ].standard_error == pytest.approx(row.standard_error)

    @pytest.mark.parametrize(("share", "n"), [(0.1, 40), (0.3, 12), (0.9, 60)])
    def test_the_interval_of_a_share_is_possible_and_covers(self, share, n):
        draw, covered = random.Random(0), []
        for _ in range(300):
            right = draw.choices([0, 1], weights=[1 - share, share], k=n)
            if 0 < sum(right) < n:
                row = fl.summarize_items(answers(right)).set_index("metric").loc["acc"]
                assert 0 < row.low < row.value < row.high < 1
                covered.append(row.low < share < row.high)
        assert 0.92 < sum(covered) / len(covered) <= 1

    def test_the_interval_of_a_perplexity_is_even_on_the_log_scale(self):
        items = [
            item | {"loglikelihood": -8.0 * (item["item"] == 0)} for item in answers([1, 0] * 3)
        ]
        row = fl.summarize_items(items).set_index("metric").loc["perplexity"]
        assert 0 < row.low < row.value < row.high
        assert row.low * row.high == pytest.approx(row.value**2)

    def test_no_error_is_claimed_where_all_items_are_alike(self):
        assert math.isnan(fl.summarize_items(answers([1] * 50)).standard_error[0])

    def test_a_cut_of_nothing_changes_nothing(self, small, tokenizer):
        before = fl.run_lm_eval(small, tokenizer, "boolq", data={"boolq": rows("boolq", 6)})
        with fl.ablate(small, fl.NeuronSelection({}, (3, 24))):
            after = fl.run_lm_eval(small, tokenizer, "boolq", data={"boolq": rows("boolq", 6)})
        assert before.items == after.items
        table = fl.paired_changes(before.items, after.items)
        assert (table.change == 0).all()
        assert not table.told.any()
        assert table.sentence.str.endswith("no change on 6 items.").all()

    def test_a_cut_changes_something(self, small, tokenizer):
        data = {"lambada_openai": rows("lambada_openai")}
        before = fl.run_lm_eval(small, tokenizer, "lambada_openai", data=data)
        with fl.ablate(small, fl.NeuronSelection({1: (2, 3, 5)}, (3, 24))):
            after = fl.run_lm_eval(small, tokenizer, "lambada_openai", data=data)
        assert (frame_of(before).loglikelihood != frame_of(after).loglikelihood).all()

    def test_a_planted_degradation_is_found(self):
        right = [1] * 120 + [0] * 80
        table = fl.paired_changes(
            answers(right), answers([0] * 25 + right[25:-5] + [1] * 5)
        ).set_index("metric")
        row = table.loc["acc"]
        assert (row.lost, row.gained) == (25, 5)
        assert row.change == pytest.approx(-0.1)
        assert row.p == pytest.approx(binomtest(25, 30).pvalue)
        assert row.low < row.change < row.high < 0
        half = 1.972 * np.std([-1] * 25 + [1] * 5 + [0] * 170, ddof=1) / math.sqrt(200)
        assert row.high - row.low == pytest.approx(2 * half, rel=0.05)
        assert row.told
        assert row.sentence.endswith("200 items; 25 lost, 5 gained): the two differ.")
        assert table.loc["perplexity"].sentence.endswith("no change on 200 items.")

    def test_too_few_items_tell_nothing(self):
        row = fl.paired_changes(answers([1] * 20), answers([0] * 2 + [1] * 18)).iloc[0]
        assert not row.told
        # McNemar's test needs six items that change, all the same way
        assert row.detectable == 6 / 20
        assert "no difference can be told; so many items can show one of 0.300" in row.sentence

    def test_what_n_items_can_show_has_the_power_that_it_promises(self):
        """Where the true difference is the one that so many items can show, four of five studies
        should see it."""
        draw = np.random.default_rng(0)

        def study(n):
            change = draw.choice([-1, 0, 1], size=n, p=[0.24, 0.68, 0.08])
            right = np.where(change < 0, 1, np.where(change > 0, 0, draw.integers(0, 2, n)))
            return fl.paired_changes(
                answers(right.tolist()), answers((right + change).tolist())
            ).iloc[0]

        sizes = {n: np.mean([study(n).detectable for _ in range(40)]) for n in (60, 90, 130)}
        assert sizes[60] > 0.16 > sizes[130]  # the true difference is 0.16
        assert sizes[90] == pytest.approx(0.16, abs=0.01)
        assert 0.6 < np.mean([study(90).told for _ in range(80)]) < 0.93

    def test_perplexities_are_compared_as_a_ratio(self):
        before, after = answers([1] * 30), answers([1] * 30)
        for item in after:
            item["loglikelihood"] -= 0.1 + 0.01 * (item["item"] % 3)
        row = fl.paired_changes(before, after).set_index("metric").loc["perplexity"]
        assert row.change == pytest.approx(math.exp(0.11) - 1)
        assert 0 < row.low < row.change < row.high
        assert row.told

    def test_clusters_count_and_not_rows(self):
        def repeated(right):
            return [
                item | {"item": n, "cluster": f"passage {n % 40}"}
                for n, item in enumerate(answers(right) * 5)
            ]

        before, after = [1] * 40, [0] * 4 + [1] * 36
        one, five = (fl.paired_changes(f(before), f(after)).iloc[0] for f in (answers, repeated))
        assert five.low == pytest.approx(one.low, abs=0.02)

    def test_other_items_are_refused(self):
        with pytest.raises(ValueError, match="before, after: expected the same items"):
            fl.paired_changes(answers([1] * 4), answers([1] * 5))


# three terms with 3, 2 and 1 items: stereotype, its opposite, what makes no sense
STEREOSET = {
    ("the gardener", "profession"): [
        ("The gardener was patient.", "The gardener was hasty.", "The gardener was a comma."),
        ("A gardener rises early.", "A gardener rises late.", "A gardener rises in brackets."),
        (
            "The gardener had rough hands.",
            "The gardener had soft hands.",
            "The gardener had tides.",
        ),
    ],
    ("grandfather", "gender"): [
        (
            "My grandfather fixes the clock.",
            "My grandfather knits a scarf.",
            "My grandfather is 7 %.",
        ),
        (
            "Grandfather told old tales.",
            "Grandfather coded all night.",
            "Grandfather melted twice.",
        ),
    ],
    ("baker", "profession"): [
        ("The baker is cheerful.", "The baker is gloomy.", "The baker is a Tuesday of chalk."),
    ],
}


def dev_json():
    """Return items of our own in the structure of StereoSet's dev.json."""
    intrasentence = []
    for (target, bias_type), triples in STEREOSET.items():
        for triple in triples:
            labelled = zip(("stereotype", "anti-stereotype", "unrelated"), triple, strict=True)
            sentences = [
                {"id": text[::-1], "sentence": text, "labels": [], "gold_label": label}
                for label, text in labelled
            ]
            number = len(intrasentence)
            intrasentence.append(
                {
                    "id": f"item {number}",
                    "target": target,
                    "bias_type": bias_type,
                    "context": f"The {target} BLANK.",
                    # in the real file they stand in any order
                    "sentences": sentences[number % 3 :] + sentences[: number % 3],
                }
            )
    return {"version": "1.0", "data": {"intersentence": [{}], "intrasentence": intrasentence}}


def stereoset(*likelihoods, terms="aaabbc", categories="xxxyyx"):
    """Return items with these log-likelihoods: of stereotype, opposite and unrelated sentence."""
    names = ["log_p_stereotype", "log_p_anti", "log_p_unrelated"]
    return [
        {"task": "stereoset", "item": n, "cluster": term, "category": category}
        | dict(zip(names, values, strict=True))
        for n, (values, term, category) in enumerate(
            zip(likelihoods, terms, categories, strict=True)
        )
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", ["lambada_openai", "bbq", "stereoset"])
def test_in_half_precision_each_text_runs_alone(task, dtype, tokenizer):
    data = {"stereoset": dev_json()["data"]["intrasentence"]}
    data |= {name: rows(name, 4) for name in ("lambada_openai", "bbq")}
    model = tiny_model(dtype=dtype)
    seen = note_rows(model)
    fl.run_lm_eval(model, tokenizer, task, data={task: data[task]}, batch_size=2)
    assert set(seen) == ({1} if is_half(model) else {2})


# ss and lms of each: 1, 1; 0, 1; 0, ½ (the stereotype beats no one); 1, ½; a tie of two, 0, 1;
# a tie of all, 0, 0
BY_HAND = [(-1, -2, -3), (-2, -1, -3), (-3, -1, -2), (-1, -3, -2), (-1, -1, -2), (-2, -2, -2)]


class TestStereoSet:
    def test_sentences_by_a_plain_forward_pass(self, small, tokenizer, tmp_path, monkeypatch):
        """Without the harness, from the file, and a mean over tokens after the start token."""
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        path = tmp_path / "dev.json"
        path.write_text(json.dumps(dev_json()), encoding="utf-8")
        result = fl.run_lm_eval(
            small, tokenizer, "stereoset", data={"stereoset": path}, batch_size=4
        )
        items, start = frame_of(result), tokenizer.convert_tokens_to_ids("<|endoftext|>")
        triples = [triple for of_term in STEREOSET.values() for triple in of_term]
        for item, texts in zip(items.itertuples(), triples, strict=True):
            ids = [tokenizer(text).input_ids for text in texts]
            wanted = [log_p(small, tokenizer, [start], each)[0] / len(each) for each in ids]
            found = [item.log_p_stereotype, item.log_p_anti, item.log_p_unrelated]
            assert found == pytest.approx(wanted, abs=1e-5)
        assert items.cluster.tolist() == ["the gardener"] * 3 + ["grandfather"] * 2 + ["baker"]
        assert items.category.tolist() == ["profession"] * 3 + ["gender"] * 2 + ["profession"]
        metrics = ["ss", "ss_gender", "ss_profession", "lms", "icat"]
        assert result.table.metric.tolist() == metrics
        assert result.table.n.tolist() == [6, 2, 4, 6, 6]

    def test_rows_samples_and_another_task_beside_it(self, small, bos_tokenizer):
        """A tokenizer that puts BOS before a text changes nothing: the start is there once."""
        data = {"stereoset": dev_json()["data"]["intrasentence"], "boolq": rows("boolq", 2)}
        tasks, samples = ["boolq", "stereoset"], {"stereoset": [1, 4]}
        result = fl.run_lm_eval(small, bos_tokenizer, tasks, data=data, samples=samples)
        items = frame_of(result)
        items = items[items.task == "stereoset"]
        assert items.item.tolist() == [1, 4]
        ids = bos_tokenizer("Grandfather told old tales.").input_ids
        total, _ = log_p(small, bos_tokenizer, ids[:1], ids[1:])
        assert items.log_p_stereotype.iloc[1] == pytest.approx(total / (len(ids) - 1), abs=1e-5)

    def test_the_scores_by_hand(self):
        values = fl.summarize_items(stereoset(*BY_HAND)).set_index("metric").value
        ss, lms = (1 / 3 + 1 / 2 + 0) / 3, (2.5 / 3 + 1.5 / 2 + 0) / 3
        assert values.to_dict() == pytest.approx(
            {
                "ss": ss,
                "ss_x": (1 / 3 + 0) / 2,
                "ss_y": 1 / 2,
                "lms": lms,
                "icat": lms * ss / 0.5,
            }
        )
        # the other side of one half: min takes 1 − ss
        most = [(-1, -2, -3)] * 5 + [(-2, -1, -3)]
        values = fl.summarize_items(stereoset(*most)).set_index("metric").value
        assert (values["ss"], values["lms"]) == (pytest.approx(2 / 3), 1)
        assert values["icat"] == pytest.approx((1 / 3) / 0.5)

    def test_a_term_in_two_categories_counts_its_own_items_in_each(self):
        items = stereoset(*BY_HAND, categories="xyyyyx")
        values = fl.summarize_items(items).set_index("metric").value
        assert values["ss_x"] == pytest.approx((1 + 0) / 2)  # a: one of one, c: none of one
        assert values["ss_y"] == pytest.approx((0 / 2 + 1 / 2) / 2)  # a: none of two, b: one of two

    def test_the_interval_leaves_out_terms(self):
        """The standard error of a mean of terms is s / √(terms), whatever their sizes."""
        table = fl.summarize_items(stereoset(*BY_HAND)).set_index("metric")
        wanted = np.std([1 / 3, 1 / 2, 0], ddof=1) / math.sqrt(3)
        assert table.standard_error["ss"] == pytest.approx(wanted)
        lms = table.loc["lms"]
        assert 0 < lms.low < lms.value < lms.high < 1  # 3 terms: ± t · s / √3 would pass both ends

    def test_changes_are_paired_over_terms(self):
        moved = [(-2, -1, -3), *BY_HAND[1:]]  # the first item turns round
        table = fl.paired_changes(stereoset(*BY_HAND), stereoset(*moved)).set_index("metric")
        assert table.change["ss"] == pytest.approx(-1 / 9)
        half = 4.302653 * np.std([-1 / 3, 0, 0], ddof=1) / math.sqrt(3)
        assert table.high["ss"] - table.low["ss"] == pytest.approx(2 * half)
        assert math.isnan(table.p["ss"])  # terms have weights: no test for counts of items
        assert table.change["lms"] == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "got JSONDecodeError"),
            ("[]", "got TypeError"),
            ('{"data": {}}', "got KeyError.'intrasentence'"),
            (
                '{"data": {"intrasentence": 3}}',
                'a list under "data", "intrasentence".*dev.json from',
            ),
            ('{"data": {"intrasentence": []}}', "at least one row for stereoset"),
            ('{"data": {"intrasentence": [3]}}', "item 0 of stereoset has no column 'target'"),
        ],
    )
    def test_a_file_of_another_kind_is_refused(self, text, message, small, tokenizer, tmp_path):
        path = tmp_path / "dev.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"^data: .*{message}"):
            fl.run_lm_eval(small, tokenizer, "stereoset", data={"stereoset": path})

    @pytest.mark.parametrize(
        ("key", "value"),
        [("gold_label", "unrelated"), ("sentence", " "), ("sentence", None), ("gold_label", None)],
    )
    def test_an_item_without_its_three_sentences_is_refused(self, key, value, small, tokenizer):
        items = dev_json()["data"]["intrasentence"]
        items[3]["sentences"][0][key] = value
        missing = [item | {"sentences": item["sentences"][:2]} for item in items]
        doubled = [item | {"sentences": item["sentences"] * 2} for item in items]
        for number, bad in ((3, items), (0, missing), (0, doubled)):
            with pytest.raises(ValueError, match=f"data: item {number} of stereoset needs three"):
                fl.run_lm_eval(small, tokenizer, "stereoset", data={"stereoset": bad})

    def test_without_a_file_it_says_where_to_get_it(self, small, tokenizer):
        advice = "download data/dev.json from github.com/moinnadeem/StereoSet"
        with pytest.raises(ValueError, match=f"data: expected a file for stereoset.*{advice}"):
            fl.run_lm_eval(small, tokenizer, ["boolq", "stereoset"])
        with pytest.raises(FileNotFoundError, match=f"no file nowhere.json for .*{advice}"):
            fl.run_lm_eval(small, tokenizer, "stereoset", data={"stereoset": "nowhere.json"})

    def test_a_sentence_longer_than_the_model_reads_is_refused(self, tokenizer):
        data = {"stereoset": dev_json()["data"]["intrasentence"]}
        with pytest.raises(ValueError, match="model: it reads up to 4 tokens"):
            fl.run_lm_eval(tiny_model(max_position_embeddings=4), tokenizer, "stereoset", data=data)


class TestMiniSets:
    def test_each_has_forty_items_or_more_of_its_own(self):
        for task, path in MINI.items():
            found = rows(task, None)
            assert len(found) >= 40
            assert len({json.dumps(row, sort_keys=True) for row in found}) == len(found)
            read_rows(task, path)

    def test_bbq_is_balanced(self):
        found = pd.DataFrame(rows("bbq", None))
        counts = found.groupby(["category", "context_condition", "question_polarity"]).size()
        assert len(counts) == 5 * 2 * 2
        assert set(counts) == {3}
        for wanted, own in found.groupby("context_condition"):
            answers = [
                row["answer_info"][f"ans{row['label']}"][1] for row in own.to_dict("records")
            ]
            assert {answer == "unknown" for answer in answers} == {wanted == "ambig"}

    def test_every_bbq_item_has_one_biased_answer_of_the_right_group(self):
        import datasets
        from lm_eval.tasks.bbq.utils import process_docs

        for doc in process_docs(datasets.Dataset.from_list(rows("bbq", None))):
            (biased,) = doc["biased_answers"]
            (group,) = [
                doc["answer_info"][f"ans{n}"][1] for n in range(3) if doc[f"ans{n}"] == biased
            ]
            stereotyped = [
                each.lower() for each in doc["additional_metadata"]["stereotyped_groups"]
            ]
            bears = group.lower().replace("lowses", "low ses") in stereotyped
            assert bears == (doc["question_polarity"] == "neg")
            assert group != "unknown"


class TestRealFiles:
    def test_lambada_and_crows_pairs(self, datasets, model, tokenizer):
        data = {
            "lambada_openai": datasets / "lambada" / "lambada_openai_test.jsonl",
            "crows_pairs_english": datasets / "crows_pairs" / "crows_pairs_anonymized.csv",
        }
        samples = {"lambada_openai": 3, "crows_pairs_english": 3}
        items = frame_of(fl.run_lm_eval(model, tokenizer, list(data), data=data, samples=samples))
        texts = read_rows("lambada_openai", data["lambada_openai"])
        for item in items[items.task == "lambada_openai"].itertuples():
            before, last = texts[item.item]["text"].rsplit(" ", 1)
            log, greedy = log_p(model, tokenizer, before, f" {last}")
            assert (item.loglikelihood, item.acc) == (pytest.approx(log, abs=1e-3), greedy)

    def test_rows(self, datasets):
        pairs = pd.DataFrame(
            read_rows(
                "crows_pairs_english", datasets / "crows_pairs" / "crows_pairs_anonymized.csv"
            )
        )
        difference = np.sign(pairs.sent_more.str.len() - pairs.sent_less.str.len()).value_counts()
        assert difference.to_dict() == {-1: 660, 1: 505, 0: 343}
        boolq = read_rows("boolq", datasets / "boolq" / "boolq_dev.jsonl")
        assert (len(boolq), len({row["passage"] for row in boolq})) == (3270, 2938)
        assert (
            len(read_rows("wikitext", datasets / "wikitext2" / "wikitext-2-raw-v1_test.txt")) == 62
        )


@pytest.mark.parametrize("path", ["", "~no.one/a.jsonl", "x" * 5000, "a\0b"])
def test_a_name_that_no_file_has_is_refused_as_data(path):
    with pytest.raises(ValueError, match="data: expected a file; got"):
        read_rows("boolq", path)
