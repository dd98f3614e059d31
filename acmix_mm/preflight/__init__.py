"""What a run needs, checked before anything is built: libraries, data and weights."""
