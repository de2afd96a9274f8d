"""Text from files of other types, read in a process of their own."""
