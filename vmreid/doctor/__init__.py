"""What this machine has, and whether a backbone is what it should be."""
