"""Self-improving transformers: small models that label harder and harder problems for themselves."""

__version__ = "0.1.0"
