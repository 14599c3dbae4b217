"""What the field's benchmarks say of a model, and whether a cut changed it.

Contents: `tasks` (which benchmarks there are, and their items), `likelihoods` (log-probabilities of
continuations), `bbq` (the two readings of BBQ), `harness` (`run_lm_eval`), `metrics` (one function
a benchmark), `summaries` (`summarize_items` and `paired_changes`).
"""
