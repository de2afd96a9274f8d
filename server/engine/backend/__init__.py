"""The model behind the engine: the interface, the real model and the check of a new one."""
