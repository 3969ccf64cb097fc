"""The models as code: encoders, indexes, training and evaluation.

Nothing in this package knows about Ray; it runs on CPU or CUDA alike.
"""
