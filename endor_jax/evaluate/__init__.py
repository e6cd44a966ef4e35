"""How good a model still is: perplexity on a text."""
