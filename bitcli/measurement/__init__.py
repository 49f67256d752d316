"""Measuring, for `bitlab bench` and the programs in benchmarks/."""
