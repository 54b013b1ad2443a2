"""Training on what models say of models: judges, selection, synthesis, and the loops that feed themselves."""
