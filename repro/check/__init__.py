"""Published numbers beside ours, and variants beside what they vary."""
