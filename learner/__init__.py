"""Everything that turns scored responses into new weights, and the training of starter models."""
