"""Run lessons, solutions and the tests on the real model as other machines would, and show what
changes.

    python tools/robust.py                          # everything, one to two hours on two cores
    python tools/robust.py --settings avx2 noise-0  # some settings
    python tools/robust.py --settings avx2+noise-0  # both at once
    python tools/robust.py --cheap                  # default+noise-0, lessons 00 to 05: `make test`
    python tools/robust.py --movement               # only how far each setting moves the logits

A processor of another make adds up the same products in another order, so the last digits of a
float32 differ. Two stand-ins for it on one machine: other kernels (`ATEN_CPU_CAPABILITY`, the
switches of oneDNN and MKL, the number of threads), and the default weights times 1 + 3e-7 · noise,
five seeds.

The table has a row for each cell or test that changed anywhere: "=" nothing changed, a number: so
many printed numbers moved by one unit of their last digit, which `tools/printed_numbers.py` lets
pass, "FAIL": more than that. Whatever fails must be printed with fewer digits, or asserted, or said
to be unstable. Linux on x86-64 only.
"""

import argparse
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path
from run_tests import FIRST_LESSONS, NBVAL, PYTEST, ROOT, environment, run_command

import fairlab as fl
from fairlab import weights

FOLDER = ROOT / "build" / "robust"
NOISE = 3e-7  # two to three times the distance between neighbouring float32 numbers
KERNELS = {
    "as it is": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "mkl-avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}
SEEDS = range(5)
# one run moves numbers in both ways; each alone shows which of them did it. Not avx2: where a
# processor has nothing newer, these are the kernels that it takes anyway
CHEAP = ["default+noise-0"]
PROBE = """
import sys, numpy, torch, fairlab as fl
model, tokenizer = fl.load_model()
pair = fl.ARTICLE_PAIR
pairs = fl.load_pairs("race", split="train")[:16]
with torch.no_grad():
    logits = model(**tokenizer([pair.prompt_a, pair.prompt_b], return_tensors="pt")).logits
numpy.savez(sys.argv[1], logits=logits, metric=fl.article_metric(model, tokenizer, pair),
            gap=fl.next_token_divergence(model, tokenizer, pairs))
"""


def noisy_cache(seed: int) -> Path:
    """Make a cache folder in which the default weights are multiplied by 1 + NOISE · noise; return
    its path.

    Other models that are unpacked already are there as they are.
    """
    source, _ = weights.find_weights(fl.DEFAULT_MODEL)
    cache = FOLDER / f"noise-{seed}"
    target = cache / Path(source).relative_to(user_cache_path())
    if (target / "sha256.json").is_file():
        return cache
    # most runs come no further, and lessons wait for this import
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target, dirs_exist_ok=True)
    for other in Path(source).parent.glob("*-transformers-*"):
        link = target.parent / other.name
        if not link.exists() and not other.name.startswith("."):
            link.symlink_to(other, target_is_directory=True)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(target / "model.safetensors")
    for tensor in state.values():
        tensor *= 1 + NOISE * torch.randn(tensor.shape, generator=generator)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    weights.write_checksums(target)
    return cache


def variables(setting: str) -> dict[str, str]:
    """Return the environment variables of a setting, or of several joined by "+"."""
    chosen = {}
    for name in setting.split("+"):
        if name in KERNELS:
            chosen.update(KERNELS[name])
        else:
            chosen["XDG_CACHE_HOME"] = str(noisy_cache(int(name.removeprefix("noise-"))))
    return chosen


def movement(settings: list[str]) -> dict[str, tuple[float, float, float]]:
    """Measure by how much each setting moves the logits and the metric of the article's pair, and
    the gaps of 16 pairs: relative changes, root mean squares."""
    measured = {}
    for setting in ["as it is", *settings]:
        path = FOLDER / f"{setting}.npz"
        subprocess.run(
            [sys.executable, "-c", PROBE, str(path)],
            env={**os.environ, **variables(setting)},
            cwd=ROOT,
            check=True,
        )
        measured[setting] = dict(np.load(path))
    moved, base = {}, measured.pop("as it is")
    print("relative change of           logits      metric        gaps")
    for setting, values in measured.items():
        squares = [
            np.mean((values[name] - base[name]) ** 2) / np.mean(base[name] ** 2) for name in base
        ]
        moved[setting] = tuple(np.sqrt(squares).tolist())
        print(f"{setting:22}" + "".join(f"{value:12.1e}" for value in moved[setting]))
    return moved


def run(setting: str, lessons: list[str], workers: int, *, unit: bool) -> dict[str, str]:
    """Run lessons, and the tests on the real model, in a setting; return an entry of the table for
    each test, and "FAIL" for pytest itself where it stopped or ran nothing."""
    entries, reports = {}, {"lessons": [*PYTEST, *NBVAL, *lessons]}
    if unit:
        reports["unit"] = [*PYTEST, "-m", "real"]
    for name, command in reports.items():
        report = FOLDER / f"{setting}-{name}.xml"
        report.unlink(missing_ok=True)  # an earlier run's must not pass for this one's
        command = [*command, f"--junitxml={report}", *(["-n", str(workers)] if workers > 1 else [])]
        code = run_command(command, {**environment(workers), **variables(setting)})
        # 0: all passed; 1: some failed, and the report says which
        if code not in (0, 1) or not report.is_file():
            entries[f"{name}: pytest ended with {code}"] = "FAIL"
            continue
        for case in ET.parse(report).getroot().iter("testcase"):
            entries[f"{case.get('classname')} {case.get('name')}"] = table_entry(case)
    return entries


def table_entry(case: ET.Element) -> str:
    """Return "FAIL", the count of numbers that moved, or "=" where none did."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "FAIL"
    moved = case.find("./properties/property[@name='moved']")
    if moved is None or moved.get("value") == "0":
        return "="
    return moved.get("value")


def table(results: dict[str, dict[str, str]]) -> str:
    """Return the tests that changed in any setting, as rows, with a column a setting."""
    tests = dict.fromkeys(test for entries in results.values() for test in entries)
    changed = [
        test for test in tests if any(entries.get(test, "=") != "=" for entries in results.values())
    ]
    lines = ["| cell or test | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for test in changed:
        lines.append(
            f"| {test} | "
            + " | ".join(entries.get(test, "") for entries in results.values())
            + " |"
        )
    failed = sum(entry == "FAIL" for entries in results.values() for entry in entries.values())
    return "\n".join(
        [*lines, "", f"{len(tests)} cells and tests in {len(results)} settings: {failed} failed"]
    )


def main() -> None:
    """Run the settings that are named on the command line and print the table."""
    everything = [*KERNELS, *(f"noise-{seed}" for seed in SEEDS)]

    def setting(text: str) -> str:
        if not set(text.split("+")) <= set(everything):
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(everything)}, nor several joined by +"
            )
        return text

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", type=setting, default=everything)
    parser.add_argument(
        "--lessons", nargs="+", default=["notebooks"], help="notebooks, or a folder of them"
    )
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 2), help="processes at a time"
    )
    parser.add_argument("--no-unit", action="store_true", help="lessons only")
    parser.add_argument(
        "--cheap", action="store_true", help="default and noise-0 at once, lessons 00 to 05"
    )
    parser.add_argument("--movement", action="store_true", help="only the change of the logits")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings, lessons = options.settings, options.lessons
    if options.cheap:
        settings, lessons = CHEAP, FIRST_LESSONS
    if not options.cheap:
        moved = movement([setting for setting in settings if setting != "as it is"])
        still = [setting for setting, changes in moved.items() if not any(changes)]
        settings = [setting for setting in settings if setting not in still]
        print(f"not run, since they change no bit here: {', '.join(still) or 'none'}")
    if options.movement:
        return
    unit = not (options.cheap or options.no_unit)
    results = {}
    for setting in settings:
        results[setting] = run(setting, lessons, options.workers, unit=unit)
        # written after each setting, so that a run that stops leaves what it has
        (FOLDER / "table.md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))
    sys.exit(any("FAIL" in entries.values() for entries in results.values()))


if __name__ == "__main__":
    main()
