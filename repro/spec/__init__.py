"""The paper as a TOML file: its types, how it is read, and what is said of mistakes."""
