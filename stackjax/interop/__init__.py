"""stackjax and its neighbours. Import the one you need; each brings its own dependencies."""
