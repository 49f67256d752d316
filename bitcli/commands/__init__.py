"""The commands, one a file: what is typed, and how the answer is shown."""
