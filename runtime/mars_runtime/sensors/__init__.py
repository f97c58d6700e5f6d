"""Where samples come from: one driver per kind of source, all with the same three verbs."""
