"""Many minimizations at once, a lane each."""
