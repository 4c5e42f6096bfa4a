"""Labelled results on disk, unit by unit: whatever happens to a machine, none is lost or falsified."""
