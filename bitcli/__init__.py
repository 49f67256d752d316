"""The command line, `bitlab`. What a command needs is imported when it runs: `--help` is there without torch."""
