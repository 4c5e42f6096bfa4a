"""When does direct logit attribution lie? The paper as one TOML file, and the question asked of any model."""

__version__ = "0.1.0"
