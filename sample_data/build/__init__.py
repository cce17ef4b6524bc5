"""How a small base model is made from nothing: synthetic speech, a codec, a network; and untrained ones of any size."""
