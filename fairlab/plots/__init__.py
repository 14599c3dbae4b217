"""Figures: data and `ax=None` in, the matplotlib `Axes` out; nothing is shown or saved.

Contents: `layers`, `projections`, `neurons` and `cuts`, each with the figures of its subject;
`style`, what they share.
"""
