"""What an operator says: options and policy, from the command line, files and run time."""
