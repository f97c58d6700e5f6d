"""The command-line faces of training: `mars-edge train` and `mars-edge evaluate`."""
