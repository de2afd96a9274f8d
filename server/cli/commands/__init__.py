"""The commands, one a file or a group of them."""
