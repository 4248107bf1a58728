"""Training of proxy models: corpus, token stream, model, optimiser, checkpoint, and the run that joins them."""
