"""What changes how an objective is learned, and never what it is: one file each."""
