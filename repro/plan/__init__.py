"""What has to be computed, under which key, and what it will cost."""
