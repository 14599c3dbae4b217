"""What a cut does to pairs and text that did not choose it, beside cuts that mean nothing.

Contents: `readings` (what is measured under one cut), `chance` (random cuts of the same size),
`flattening` (what a mere temperature does at the same price), `rows` (changes, intervals, tests and
sentences), `compare` (all of it, as a `Comparison`).
"""
