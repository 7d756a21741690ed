"""What makes the decisions of `core` true: breakers wait here; holders are told, and their deaths noticed, here."""
