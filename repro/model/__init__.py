"""A folder becomes a model with processed weights, and a forward pass that keeps every site and head."""
