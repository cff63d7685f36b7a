"""What the compiler says of a program, and of devices that are not there."""
