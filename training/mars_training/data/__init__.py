"""Readers: from a data set, real or rendered, to preprocessed tensors in memory."""
