"""Training an edit: settings and loop (`train`), what is minimized (`objectives`), and what is kept between steps."""
