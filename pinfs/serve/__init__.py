"""The life of a mount: its parts put together, the daemon, the service manager, the metrics."""
