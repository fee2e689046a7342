"""How good is a model? Its results on acquired or simulated subjects, scored beside anchors that need no model."""
