"""Encoders, a module for each family; `mars_training.model.backbones` names the kinds."""
