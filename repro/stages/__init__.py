"""The stages of a command, one file each: each takes the previous one's value."""
