"""How a base model comes to be; today an untrained one of any size."""
