"""One HTML page that shows a finished run, and the same in the terminal for one problem. No JAX."""
