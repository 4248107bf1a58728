"""Text to tokens: sources, tokenizer, shards, and the manifest that names a corpus by its content."""
