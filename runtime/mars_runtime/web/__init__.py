"""A model in the browser: its page (built from `runtime/web`), the server of it, and a recorded play of the rig."""
