"""What the parts of training cost on the machine at hand."""
