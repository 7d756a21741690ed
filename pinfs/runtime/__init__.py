"""How a request runs: where it may wait, what its errors become, what it may use, what is counted."""
