"""Planning: actions chosen by what a world model imagines of them."""
