"""The page of `pinfs web`: one mount, looked at read-only. Knows the mount only by its control directory."""
