"""`make demo`: what pins are good for, shown with real processes on a real mount."""
