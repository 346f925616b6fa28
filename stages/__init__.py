"""One program per pipeline stage, and the command line that runs them."""
