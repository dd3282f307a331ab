"""What a user runs: the command line, and one file per subcommand."""
