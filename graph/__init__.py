"""The graph as data: schema, durable store, in-memory view, snapshots and importers.

Nothing in this package knows about Ray or about a model.
"""
