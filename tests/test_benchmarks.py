"""What the benchmarks write: tables from what was measured, and arithmetic."""

import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import growth

    return growth


def test_the_tables_are_those_of_what_was_measured(growth):
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    written = re.search(r"<!-- growth -->\n(.*?)<!-- end growth -->", text, re.DOTALL)[1]
    assert written == growth.table(growth.kept().get("growth", {}))


def test_models_on_gpus_by_hand(growth):
    # 4 bytes and a quarter on top; 2 · 1e9 · 40,000 FLOPs at half of 8.1e12 a second
    assert growth.on_card(1_000_000_000, "T4") == f"float32, 5.0 GB, {8e13 / 4.05e12 / 60:.1f} min"
    # 2.5 bytes; 1,000 pairs read 16 GB at half of 300 GB/s, longer than 6.4e14 / 60.5e12 seconds
    assert growth.on_card(8_000_000_000, "L4") == f"half, 20.0 GB, {1000 * 16 / 150 / 60:.1f} min"
    assert growth.on_card(8_000_000_000, "T4") == "no room for 20.0 GB"


def test_a_table_says_what_moved_and_what_was_busy(growth):
    rows = {
        "75": {"seconds": 0.75, "peak": 1.0, "own": 0.1, "quiet": True},
        "750": {"seconds": 8.25, "peak": 1.02, "own": 0.1, "quiet": False},
    }
    text = growth.table(rows)
    assert "the time a pair moves by 10.0% (aimed at: 10%), peak memory by 2.0% (5%)" in text
    assert "| 750 | 8.25 | 11.00 | 1.020 GB |" in text
    assert "On a busy machine: 750." in text


def test_the_readme_says_what_was_measured(growth):
    text = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    said = text.split("## How fast\n")[1].split("\n## ")[0]
    cases = growth.kept()["cases"]
    assert f"optipfair takes {cases['scores']['ratio']:.1f} times as long for the diff" in said
    assert f"{cases['scores-llama']['ratio']:.1f} times for 32 pairs in a model of Llama" in said
    assert f"{cases['cut-llama']['ratio']:.1f} times for the scores and the cut of one" in said
    assert f"own functions takes {cases['compare']['ratio']:.1f} times as long" in said
    assert f"lm-evaluation-harness {cases['bbq']['ratio']:.1f} times" in said
    even = [cases[name]["ratio"] for name in ("lambada_openai", "boolq", "crows_pairs_english")]
    assert "({:.1f}, {:.1f} and {:.1f})".format(*even) in said
    assert f"{round(cases['attribution']['ratio'], -3):,.0f} times" in said
    assert len(cases) == 9 and {row["runs"] for row in cases.values()} == {5}
