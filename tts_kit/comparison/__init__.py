"""The same sentences in every arm, and the page to listen to them."""
