"""What answers requests, and the flags that choose it."""
