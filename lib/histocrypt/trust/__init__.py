"""How far a prediction may be trusted: what a model learnt from, how far a section is from that, and intervals."""
