"""Training of the translation models: simulation, data readers, stages, evaluation and export."""
