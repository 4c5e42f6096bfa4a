"""What a scan claims, on data and models where the truth is known."""
