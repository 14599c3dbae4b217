"""What compare and report judge, and how; all that can be refused before the model loads.

Contents: `Plan`; `check_choosing`, `check_batch_size`, `where_to_load`; `QUICK_LOOK`, what is said
of --quick.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fairlab as fl
from fairlab import processes
from fairlab.cli.neurons import check_choice, is_causal
from fairlab.cli.options import BIAS_WEIGHT, FRACTION
from fairlab.cli.pairs import PairOptions, check_pair_options

QUICK_LOOK = (
    "A quick look: few random cuts, a short text, no article metric. Measure again without --quick "
    "before you conclude."
)


@dataclass(frozen=True)
class Plan:
    """What compare and report judge, and how; what can be refused before the model loads, is."""

    method: str | None
    bias_weight: float
    fraction: float
    n_random: int
    seed: int
    quick: bool
    batch_size: int
    cache: Path | None
    no_cache: bool
    pair_options: PairOptions
    selection: Path | None = None
    changed: str | None = None
    continuations: int = 0
    where: Mapping = field(default_factory=dict)  # of a changed model, for load_model

    def __post_init__(self):
        from fairlab.files import as_path
        from fairlab.weights import find_weights

        if self.changed is not None:
            as_path("changed", self.changed)  # "" would count as not given
        asked = [name for name in ("method", "selection", "changed") if getattr(self, name)]
        if len(asked) > 1:
            raise ValueError(f"{', '.join(asked)}: expected one of them; got {len(asked)}")
        for name, usual in (("bias_weight", BIAS_WEIGHT), ("fraction", FRACTION)):
            if not self.chooses and getattr(self, name) != usual:
                raise ValueError(f"{name}: {asked[0]} is judged as it is, nothing is chosen")
        for method in self.methods or ["random"]:
            check_choice(method, self.bias_weight, self.fraction, also=["random"])
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"method: expected each method once; got {self.method}")
        if self.n_random < 1:
            raise ValueError(f"n_random: expected at least 1 random cut; got {self.n_random}")
        check_batch_size(self.batch_size)
        if self.continuations < 0:
            raise ValueError(f"continuations: expected 0 or more; got {self.continuations}")
        if self.continuations and self.pair_options.language != "en":
            raise ValueError(
                "continuations: the words that are counted are English; for another language see "
                "fairlab.continuation_gaps"
            )
        self.given_cut()
        if self.changed:
            find_weights(self.changed)
        # the dataclass is frozen, so its field is set through object
        object.__setattr__(self, "cache", readings_are_kept_in(self.cache, self.no_cache))

    @property
    def chooses(self):
        """Whether neurons are chosen, and not given."""
        return not (self.selection or self.changed)

    @property
    def methods(self):
        """The methods that choose, in the order given."""
        names = [name.strip() for name in (self.method or "guarded").split(",")]
        return names if self.chooses else []

    def given_cut(self):
        """Return the cut of --selection, or the one that made the model of --changed, if known."""
        from fairlab.files import as_path

        path = self.selection
        if self.changed:
            path = as_path("changed", self.changed) / "selection.json"
            path = path if path.is_file() else None
        return path and read_cut_file(path)

    @property
    def facts(self):
        """How the neurons were chosen, for the report."""
        if self.selection:
            facts = {"cut": f"given, in {self.selection.name}"}
        elif self.changed:
            facts = {"changed model": Path(self.changed).name}
        else:
            facts = {
                "pairs": self.pair_options.pairs,
                "score": ", ".join(self.methods),
                "fraction": self.fraction,
            }
            # guarded scores have no weights
            if not all(is_causal(method) or method == "random" for method in self.methods):
                facts["bias weight"] = self.bias_weight
        facts |= self.pair_options.facts
        return facts | ({"quick look": QUICK_LOOK} if self.quick else {})


def check_choosing(pair_options, batch_size, method, bias_weight, fraction=0.002):
    """Refuse pairs, a method and numbers by which no neurons can be chosen."""
    check_pair_options(pair_options)
    check_choice(method, bias_weight, fraction)
    check_batch_size(batch_size)


def check_batch_size(batch_size):
    """Refuse a batch that has no room for a pair."""
    from fairlab import passes

    passes.check_batch_size(batch_size)


def where_to_load(device, device_map):
    """Return what the options say of the devices, as `load_model` takes it."""
    from fairlab.models import check_places

    if device_map and processes.count() > 1:
        raise ValueError(
            "device_map: each of several processes holds a whole model on a device of its own; "
            "to spread one model over several GPUs start one process, without accelerate launch"
        )
    device = processes.own_device(device)
    if (device_map or "").lstrip().startswith("{"):
        try:
            device_map = json.loads(device_map)
        except ValueError as error:
            raise ValueError(
                "device_map: expected a JSON dict, such as "
                f'\'{{"model": 0, "lm_head": 1}}\'; got {device_map!r} ({error})'
            ) from error
    check_places(device, device_map)
    return {"device": device, "device_map": device_map}


def read_cut_file(path):
    """Read a cut, or gates, from their JSON file."""
    from fairlab.files import read_text

    text = read_text("selection", path)[0]
    kind = fl.NeuronGates if '"gates"' in text else fl.NeuronSelection
    try:
        return kind.from_json(text)
    except ValueError as error:
        raise ValueError(f"selection: {path} is no cut that fairlab wrote ({error})") from error


def digest_of_code(folder=Path(fl.__file__).parent):
    """Return a short name for the code in a folder, by default fairlab's own.

    It is another one where any line of the code is another: what older code measured is not mixed
    with what newer code measures.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def readings_are_kept_in(folder, no_cache):
    """Return the folder that keeps the readings, made where it is missing; None for none."""

    from fairlab.files import as_path, can_be_written, readings_folder

    if no_cache:
        if folder:
            raise ValueError("cache, no_cache: expected one of them; got both")
        return None
    folder = as_path("cache", folder or readings_folder()) / digest_of_code()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = can_be_written(folder)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"cache: {folder.parent} can't be written; choose another folder (--cache FOLDER), "
            "or keep nothing (--no-cache)"
        )
    return folder
