"""What leaves the house: the adapter with its card, merged weights, and whose consent goes with them."""
