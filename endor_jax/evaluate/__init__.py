"""How good a model still is: perplexity on a text, and what changed beside another checkpoint."""
