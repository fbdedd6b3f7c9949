"""What inference passes to the layers."""
