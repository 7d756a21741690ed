"""`make demo`, and `make demo-hosts`: what pins are good for, shown with real processes on a real mount."""
