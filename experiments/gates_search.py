"""Search the settings of the balanced gates on validation pairs, and freeze what each of them does.

    python experiments/gates_search.py

72 settings: 92 and 276 neurons, each with four goals, three charges for neutral pairs and three
floors of the damage (`fairlab.gating.solve_gates`). All are scored on pairs whose template and
words are both in the train split, and read on the validation pairs and the first part of the
evaluation text. A setting whose goal so many neurons can't reach has no row. Writes
`data/results/gates_search.csv`, and prints the settings that `choose` finds, to hold against
`CHOSEN` of `tries.py`.
"""

import itertools

import frozen
import pandas as pd
from tqdm import tqdm

import fairlab as fl
from fairlab.gating import GateTables, solve_gates

GOALS = {92: (0.8, 0.95, 1.1, 1.25), 276: (1.5, 1.8, 2.1, 2.4)}
CHARGES = (0.6, 0.7, 0.78)
FLOORS = (2.0, 3.0, 4.0)
DEAREST = {92: 0.01, 276: 0.02}  # the highest rise of perplexity that is allowed


def settings() -> list[dict[str, float]]:
    """List the settings of the search."""
    grid = []
    for count, goals in GOALS.items():
        for goal, charge, floor in itertools.product(goals, CHARGES, FLOORS):
            grid.append({"count": count, "goal": goal, "charge": charge, "floor": floor})
    return grid


def search(
    model, tokenizer, tables: GateTables, held_out: fl.HeldOut, grid: list[dict[str, float]]
) -> pd.DataFrame:
    """Read each setting of the grid; return a row for each."""
    before = frozen.quick_reading(model, tokenizer, held_out)
    rows = []
    for setting in tqdm(grid, unit="setting"):
        try:
            gates = solve_gates(tables, **setting)
        except ValueError as error:  # so many neurons can't reach the goal
            print(error)
            continue
        with fl.gate(model, gates, tables.mean):
            after = frozen.quick_reading(model, tokenizer, held_out)
        rows.append({**setting, **frozen.quick_changes(held_out, before, after)})
    return pd.DataFrame(rows)


def neutral_range() -> tuple[float, float]:
    """Return the range of the neutral change under random removals, as `tries.py` measured it."""
    table = pd.read_csv(frozen.RESULTS / "tries.csv")
    row = table.query("method == 'removal' and read_on == 'validation' and row == 'neutral'")
    return row.random_low.item(), row.random_high.item()


def choose(table: pd.DataFrame, low: float, high: float) -> pd.DataFrame:
    """Return the settings that narrow most, for each count the two best: with a rise of perplexity
    below `DEAREST` and neutral pairs inside the range of random removals."""
    cheap = table.perplexity <= table["count"].map(DEAREST)
    allowed = table[cheap & table.neutral.between(low, high)]
    return allowed.sort_values("headline").groupby("count").head(2).sort_values("count")


def main() -> None:
    """Measure every setting, write the table and say which are chosen."""
    model, tokenizer = fl.load_model()
    model.requires_grad_(False)
    pairs, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    tables = frozen.gate_tables(model, tokenizer, pairs, neutral, "train_pairs")
    table = search(model, tokenizer, tables, frozen.validation(tokenizer), settings())
    table = table.assign(**frozen.provenance(model))
    frozen.write_csv(table, "gates_search.csv")
    print(choose(table, *neutral_range()).iloc[:, :7].round(4).to_string(index=False))


if __name__ == "__main__":
    main()
