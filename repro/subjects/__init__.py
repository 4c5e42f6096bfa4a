"""Models, prompts and tokenizers: from a name, a folder or the hub to something that can be computed on."""
