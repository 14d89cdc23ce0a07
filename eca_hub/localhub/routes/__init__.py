"""What the hub answers, one file an idea. Routes read a Call and know nothing about each other."""
