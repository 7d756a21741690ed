"""The page of `pinfs web`: a read-only view of one mount, through its control directory alone."""
