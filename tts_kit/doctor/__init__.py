"""Checks before a training: `checks` of machine, packages and base model, `plan` of memory, time and price by GPU."""
