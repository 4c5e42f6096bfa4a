"""How fast the package is, said only of results that are right."""
