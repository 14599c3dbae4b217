"""What a surgery leaves behind for others: a page to read, its numbers, a model card, an upload.

Contents: `page` (`write_report`), `verdict` (what may be said), `advice` (what to do with it),
`conditions` (bounds that make a run fail), `terms` (where a model comes from, its licence), `card`
(`model_card`), `upload` (`push_to_hub`).
"""
