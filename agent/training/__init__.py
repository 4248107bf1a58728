"""Training of proxy models: token stream, model, optimiser, checkpoint, and the run that joins them."""
